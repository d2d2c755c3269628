#include "separable_stage.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>

#include "buffer.h"
#include "dispatch.h"
#include "memory_pool.h"
#include "shares.h"

namespace bionas {

int64_t padding(const Branch& b) { return int64_t{b.dilation} * (b.kernel / 2); }

namespace {

constexpr int64_t max_taps = 25;

// Minimum positions per block: rows of a large image, or several small images. The output of a kernel stays in the L1
// cache for the next.
constexpr int64_t block = 64;

template <class Map>
int64_t rows_per_block(const Stage<Map>& s) { return (block + s.wo - 1) / s.wo; }

int64_t grads_per_branch(int64_t c) { return (c + max_taps) * c; }

// The number of branches whose weights are worth waking a thread to reorder.
int64_t branches_per_thread(int64_t c) { return 1 + (1 << 14) / grads_per_branch(c); }

// Weights in the layout of the kernels.
struct Packed {
  template <class Map>
  Packed(const Stage<Map>& s, bool backward)
      : c(s.c), pairs(std::is_same_v<Map, Narrow> && current_isa() == Isa::avx512_bf16), data(s.branches * size()) {
    for (int k = 0; k < s.branches; k++) pad = padding(s.branch[k]) > pad ? padding(s.branch[k]) : pad;
    parallel_for(s.branches, branches_per_thread(c), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; k++) pack(s, k, backward);
    });
  }

  template <class Map>
  void pack(const Stage<Map>& s, int64_t k, bool backward) {
    const Branch& b = s.branch[k];
    const int64_t taps = b.kernel * b.kernel;
    taps_first(b.depthwise, const_cast<float*>(depthwise(k)), taps, false);
    // At stride 1 the error is correlated with the reversed kernel, at stride 2 it is scattered.
    if (backward) taps_first(b.depthwise_feedback, const_cast<float*>(depthwise_feedback(k)), taps, s.stride == 1);
    // The element in row i and column j of the factor is at i · down + j · across.
    const float* from = backward ? b.pointwise_feedback : b.pointwise;
    const int64_t down = backward ? c : 1, across = backward ? 1 : c;
    float* to = matrix(k);
    Narrow* to_pairs = reinterpret_cast<Narrow*>(to);
    for (int64_t i = 0; i < c; i++)
      for (int64_t j = 0; j < c; j++) {
        const float value = from[i * down + j * across];
        if (pairs) to_pairs[(i - i % 2) * c + 2 * j + i % 2] = narrow(value);
        else to[i * c + j] = value;
      }
  }

  int64_t size() const { return (2 * max_taps + c) * c; }
  const float* depthwise(int k) const { return data.data() + k * size(); }                              // [k·k, C]
  const float* depthwise_feedback(int k) const { return data.data() + k * size() + max_taps * c; }      // [k·k, C]
  // Rows of the factor of a product, [C_in, C_out] or, backward, the feedback [C_out, C_in]; narrow: two rows
  // interleaved, [C/2, C, 2].
  template <class T>
  const T* pointwise(int k) const { return reinterpret_cast<const T*>(matrix(k)); }
  float* matrix(int k) const { return const_cast<float*>(data.data()) + k * size() + 2 * max_taps * c; }

  // [C, k, k] → [k·k, C]
  void taps_first(const float* weight, float* out, int64_t taps, bool reversed) const {
    for (int64_t i = 0; i < c; i++)
      for (int64_t t = 0; t < taps; t++) out[(reversed ? taps - 1 - t : t) * c + i] = weight[i * taps + t];
  }

  int64_t c, pad = 0;
  bool pairs;
  Buffer<float> data;
};

void add_sums(Shares<double>& shares, int64_t branches, int64_t c, double* first, double* second) {
  for (int64_t i = 0; i < branches * c; i++) first[i] = second[i] = 0;
  shares.each([&](const double* sums) {
    for (int64_t k = 0; k < branches; k++)
      for (int64_t i = 0; i < c; i++) {
        first[k * c + i] += sums[2 * k * c + i];
        second[k * c + i] += sums[(2 * k + 1) * c + i];
      }
  });
}

}  // namespace

}  // namespace bionas

#define BIONAS_KERNEL "separable_stage.inc"
#include "dispatch.inc"

namespace bionas {

template <class Map>
int64_t tiles_size(const Stage<Map>& s, int64_t pad) { return s.n * (s.h + 2 * pad) * (s.w + 2 * pad) * s.c; }

template <class Map>
void fill_tiles(const Stage<Map>& s, const Tiles& tiles) {
  const auto kernel = BIONAS_CHOOSE(fill_images<Map>);
  parallel_for(s.n, 1, [&](int64_t begin, int64_t end) { kernel(s, tiles, begin, end); });
}

template <class Map>
void take_from_tiles(const Stage<Map>& s, const Tiles& tiles, const Tiles& grad, float* grad_x) {
  const auto kernel = BIONAS_CHOOSE(take_images<Map>);
  parallel_for(s.n, 1, [&](int64_t begin, int64_t end) { kernel(s, tiles, grad, grad_x, begin, end); });
}

template <class Map>
void stage_forward(const Stage<Map>& s, const StageForward<Map>& out) {
  const Packed packed(s, false);
  if (s.shared && !s.tiles) {
    const Scratch<> memory(tiles_size(s, packed.pad));
    const Tiles tiles{packed.pad, memory.data};
    fill_tiles(s, tiles);
    Stage<Map> tiled = s;
    tiled.tiles = &tiles;
    return stage_forward(tiled, out);
  }
  const auto kernel = BIONAS_CHOOSE(forward_images<Map>);
  Shares<double> sums(2 * s.branches * s.c);
  parallel_for(s.n, 1, [&](int64_t begin, int64_t end) { kernel(s, out, packed, sums.start(begin), begin, end); });
  add_sums(sums, s.branches, s.c, out.sum, out.sum_sq);
}

template <class Map>
void stage_backward(const Stage<Map>& s, const StageBackward<Map>& g) {
  const Packed packed(s, true);
  if (s.shared && !s.tiles) {
    const int64_t size = tiles_size(s, packed.pad);
    const Scratch<> memory(size), grad_memory(size);
    const Tiles tiles{packed.pad, memory.data}, grad_tiles{packed.pad, grad_memory.data};
    fill_tiles(s, tiles);
    std::fill_n(grad_tiles.data, size, 0.0f);
    Stage<Map> tiled = s;
    tiled.tiles = &tiles;
    StageBackward<Map> into = g;
    into.grad_tiles = &grad_tiles;
    stage_backward(tiled, into);
    return take_from_tiles(s, tiles, grad_tiles, g.grad_x);
  }
  std::unique_ptr<Packed> before;
  if (g.before) before = std::make_unique<Packed>(*g.before, false);
  const auto kernel = BIONAS_CHOOSE(backward_images<Map>);
  const bool weights = s.branches > 0 && s.branch[0].pointwise_grad != nullptr;
  Shares<double> sums(g.grad_sum ? 2 * s.branches * s.c : 0);
  Shares<float> grads(weights ? s.branches * grads_per_branch(s.c) : 0);
  parallel_for(s.n, 1, [&](int64_t begin, int64_t end) {
    kernel(s, g, packed, before.get(), sums.start(begin), grads.start(begin), begin, end);
  });
  if (g.grad_sum) add_sums(sums, s.branches, s.c, g.grad_sum, g.product_sum);
  if (!weights) return;
  const int64_t c = s.c;
  parallel_for(s.branches, branches_per_thread(c), [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) {
      const Branch& b = s.branch[k];
      const int64_t taps = b.kernel * b.kernel;
      bool first = true;
      grads.each([&](const float* share) {
        const float* from = share + k * grads_per_branch(c);
        for (int64_t i = 0; i < c * c; i++) b.pointwise_grad[i] = first ? from[i] : b.pointwise_grad[i] + from[i];
        for (int64_t i = 0; i < c; i++)
          for (int64_t t = 0; t < taps; t++) {
            float& to = b.depthwise_grad[i * taps + t];
            to = first ? from[(c + t) * c + i] : to + from[(c + t) * c + i];
          }
        first = false;
      });
    }
  });
}

#define BIONAS_MAPS(Map)                                                                              \
  template int64_t tiles_size(const Stage<Map>&, int64_t);                                             \
  template void fill_tiles(const Stage<Map>&, const Tiles&);                                           \
  template void take_from_tiles(const Stage<Map>&, const Tiles&, const Tiles&, float*);                \
  template void stage_forward(const Stage<Map>&, const StageForward<Map>&);                            \
  template void stage_backward(const Stage<Map>&, const StageBackward<Map>&)
BIONAS_MAPS(float);
BIONAS_MAPS(Narrow);

}  // namespace bionas
