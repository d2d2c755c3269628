#include "separable_edges.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "images.h"
#include "mixed_sum.h"
#include "memory_pool.h"
#include "separable_stage.h"

namespace bionas {

namespace {

// The maps z of branches [begin, end) as terms of the sums of their edges.
struct Terms {
  template <class Map>
  Terms(const SeparableEdges<Map>& e, const Map* z, int begin, int end) {
    for (int k = begin; k < end; k++) {
      const auto known = std::find(edges.begin(), edges.end(), e.edge[k]);
      own.push_back(known - edges.begin());
      if (known == edges.end()) edges.push_back(e.edge[k]);
      maps.push_back(z + (k - begin) * e.map());
    }
    sum = {e.map() / e.c, e.c, int(edges.size()), end - begin, maps.data(), own.data()};
  }
  std::vector<AnyMap> maps;
  std::vector<int64_t> own, edges;
  MixedSum sum;
};

// Branches [begin, end), all of two stages or all of one, and their data.
template <class Map>
class Group {
 public:
  Group(const SeparableEdges<Map>& e, const Tiles& tiles, int begin, int end)
      : e(e), tiles(tiles), c(e.c), begin(begin), end(end), count(end - begin), two(begin < e.twice),
        scale(count * c), shift(count * c),
        sum(count * c), second_sum(count * c) {}

  Stage<Map> first(const Branch* branches) const {
    return {e.n, e.h, e.w, c, e.ho(), e.wo(), e.stride, count, branches, e.x, true, nullptr, nullptr, &tiles};
  }
  Stage<Map> second(const Branch* branches, const Map* z) const {
    return {e.n, e.ho(), e.wo(), c, e.ho(), e.wo(), 1, count, branches, z, false, scale.data(), shift.data()};
  }

  // Writes the outputs of the first stages; z is read soon, the copy is not.
  void run_first(Map* z, Map* copy) {
    stage_forward<Map>(first(e.first + begin), {z, sum.data(), second_sum.data(), copy});
    if (e.training) moments(two ? begin : e.twice + begin);
  }
  // The affine maps through which the second stages read what the first ones wrote.
  void set_affine() {
    for (int64_t i = 0; i < count * c; i++) {
      const int64_t at = begin * c + i;
      scale[i] = float(rstd(at));
      shift[i] = float(-e.mean[at] * rstd(at));
    }
  }
  void run_second(const Map* z1, Map* z, Map* copy) {
    set_affine();
    stage_forward<Map>(second(e.second + begin, z1), {z, sum.data(), second_sum.data(), copy});
    if (e.training) moments(e.twice + begin);
  }

  void add_up(const SeparableEdgesForward<Map>& f, const Map* z, std::vector<bool>& started) {
    const Terms terms(e, z, begin, end);
    std::vector<float> weight(count * c);
    std::vector<double> offset(terms.edges.size() * c);
    for (int k = 0; k < count; k++)
      for (int64_t j = 0; j < c; j++) {
        const int64_t at = (e.twice + begin + k) * c + j;
        const double factor = e.mixing[begin + k] * rstd(at);
        weight[k * c + j] = float(factor);
        offset[terms.own[k] * c + j] -= factor * e.mean[at];
      }
    std::vector<const float*> into;
    std::vector<float*> out;
    for (int64_t edge : terms.edges) {
      into.push_back(started[edge] ? f.out[edge] : f.into ? f.into[edge] : nullptr);
      out.push_back(f.out[edge]);
      started[edge] = true;
    }
    const std::vector<float> rounded(offset.begin(), offset.end());
    mixed_sum_forward(terms.sum, weight.data(), rounded.data(), into.data(), out.data());
  }

  // The gradients of mixing; and a, b, d: the gradient of the last map is a · grad + b · z + d.
  void differentiate(const SeparableEdgesBackward<Map>& g) {
    const Terms terms(e, g.z + begin * e.map(), begin, end);
    std::vector<const float*> grad;
    for (int64_t edge : terms.edges) grad.push_back(g.grad[edge]);
    std::vector<double> grad_sum(terms.edges.size() * c);
    mixed_sum_backward(terms.sum, grad.data(), grad_sum.data(), second_sum.data());
    add_up_images(grad_sum.data(), int64_t(terms.edges.size()), e.images, e.width());
    add_up_images(second_sum.data(), count, e.images, e.width());
    a.resize(count * c), b.resize(count * c), d.resize(count * c);
    for (int k = 0; k < count; k++) {
      const double mixing = e.mixing[begin + k];
      double& total = g.grad_mixing[begin + k] = 0;
      for (int64_t j = 0; j < c; j++) {
        const int64_t i = k * c + j, at = (e.twice + begin) * c + i;
        const double own = grad_sum[terms.own[k] * c + j], normalised = rstd(at) * (second_sum[i] - e.mean[at] * own);
        if (j < e.width()) total += normalised;
        affine(i, at, mixing, own, normalised);
      }
    }
  }

  // Backward through the second stages, with the first ones recomputed, which is cheap if their maps stay in a cache.
  // Writes those, z1, and grad, [count, N, H_out, W_out, C]; a, b, d become those of z1.
  void second_backward(const SeparableEdgesBackward<Map>& g, Map* z1, float* grad) {
    set_affine();
    const std::vector<Branch> branches = with_grads(e.second, [&](int k) { return g.grad[e.edge[k]]; });
    const Stage<Map> before = first(e.first + begin);
    stage_backward<Map>(
        second(branches.data(), z1),
        {g.z + begin * e.map(), a.data(), b.data(), d.data(), grad, sum.data(), second_sum.data(), nullptr, &before});
    add_up_sums();
    for (int64_t i = 0; i < count * c; i++) {
      const int64_t at = begin * c + i;
      affine(i, at, 1.0, sum[i], second_sum[i]);
    }
  }
  // Backward through the first stages; own: the output of second_backward.
  void first_backward(const SeparableEdgesBackward<Map>& g, const Map* z, const float* own, const Tiles& grad_tiles) {
    const std::vector<Branch> branches = with_grads(
        e.first, [&](int k) { return own ? own + (k - begin) * e.map() : g.grad[e.edge[k]]; });
    stage_backward<Map>(
        first(branches.data()), {z, a.data(), b.data(), d.data(), nullptr, nullptr, nullptr, &grad_tiles});
  }

  const SeparableEdges<Map>& e;
  const Tiles& tiles;
  const int64_t c;
  const int begin, end, count;
  const bool two;

 private:
  double rstd(int64_t at) const { return 1 / std::sqrt(e.var[at] + variance_epsilon); }

  void add_up_sums() {
    for (double* sums : {sum.data(), second_sum.data()}) add_up_images(sums, count, e.images, e.width());
  }

  void moments(int64_t row) {
    add_up_sums();
    const double positions = e.positions();
    for (int64_t i = 0; i < count * c; i++) {
      const double mean = sum[i] / positions, var = second_sum[i] / positions - mean * mean;
      e.mean[row * c + i] = mean;
      e.var[row * c + i] = var > 0 ? var : 0;
    }
  }

  // From Σ grad and Σ grad · ẑ; the gradient of ẑ is factor · grad.
  void affine(int64_t i, int64_t at, double factor, double grad_sum, double normalised) {
    const double positions = e.positions(), slope = rstd(at) * rstd(at) * factor * normalised / positions;
    a[i] = float(factor * rstd(at));
    b[i] = e.training ? float(-slope) : 0.0f;
    d[i] = e.training ? float(slope * e.mean[at] - rstd(at) * factor * grad_sum / positions) : 0.0f;
  }

  template <class Grad>
  std::vector<Branch> with_grads(const Branch* branches, const Grad& grad) const {
    std::vector<Branch> own(branches + begin, branches + end);
    for (int k = 0; k < count; k++) own[k].grad = grad(begin + k);
    return own;
  }

  std::vector<float> scale, shift, a, b, d;
  std::vector<double> sum, second_sum;
};

// Calls body with the bounds of one group after the other, those of two stages first.
template <class Map, class Body>
void each_group(const SeparableEdges<Map>& e, const Body& body) {
  const int64_t most = std::max<int64_t>(1, e.together / int64_t(e.map() * sizeof(Map)));
  const auto divide = [&](int begin, int end) {
    const int64_t groups = (end - begin + most - 1) / most;
    for (int64_t i = 0; i < groups; i++)
      body(begin + int((end - begin) * i / groups), begin + int((end - begin) * (i + 1) / groups));
  };
  divide(0, e.twice);
  divide(e.twice, e.branches);
}

// The size of the maps of the largest group.
template <class Map>
int64_t scratch_size(const SeparableEdges<Map>& e) {
  int64_t largest = 0;
  each_group(e, [&](int begin, int end) { largest = std::max<int64_t>(largest, end - begin); });
  return largest * e.map();
}

// The state as the shared input of all first stages.
template <class Map>
class State {
 public:
  explicit State(const SeparableEdges<Map>& e)
      : stage_{e.n, e.h, e.w, e.c, e.ho(), e.wo(), e.stride, 0, nullptr, e.x, true, nullptr, nullptr},
        pad_(widest(e)),
        memory_(tiles_size(stage_, pad_)),
        tiles{pad_, memory_.data} {
    fill_tiles(stage_, tiles);
  }

  // The gradients of the tiles, initially zero; freed with this object.
  Tiles new_grad() {
    grad_memory_.emplace(tiles_size(stage_, pad_));
    std::fill_n(grad_memory_->data, tiles_size(stage_, pad_), 0.0f);
    return {pad_, grad_memory_->data};
  }
  void take(const Tiles& grad, float* grad_x) const { take_from_tiles(stage_, tiles, grad, grad_x); }

 private:
  static int64_t widest(const SeparableEdges<Map>& e) {
    int64_t pad = 0;
    for (int k = 0; k < e.branches; k++) pad = std::max(pad, padding(e.first[k]));
    return pad;
  }

  const Stage<Map> stage_;
  const int64_t pad_;
  const Scratch<> memory_;
  std::optional<Scratch<>> grad_memory_;

 public:
  const Tiles tiles;
};

}  // namespace

template <class Map>
void separable_edges_forward(const SeparableEdges<Map>& e, const SeparableEdgesForward<Map>& f) {
  const State<Map> state(e);
  const Scratch<Map> between(scratch_size(e)), last(scratch_size(e));
  std::vector<bool> started(e.edges);
  each_group(e, [&](int begin, int end) {
    Group<Map> group(e, state.tiles, begin, end);
    Map* z = f.z + begin * e.map();
    if (group.two) {
      group.run_first(between.data, nullptr);
      group.run_second(between.data, last.data, z);
    } else group.run_first(last.data, z);
    group.add_up(f, last.data, started);
  });
  for (int edge = 0; edge < e.edges; edge++) {
    if (started[edge]) continue;
    if (f.into && f.into[edge]) std::copy_n(f.into[edge], e.map(), f.out[edge]);
    else std::fill_n(f.out[edge], e.map(), 0.0f);
  }
}

template <class Map>
void separable_edges_backward(const SeparableEdges<Map>& e, const SeparableEdgesBackward<Map>& g) {
  if (!g.grad_x) {
    const Tiles none{};
    return each_group(e, [&](int begin, int end) { Group<Map>(e, none, begin, end).differentiate(g); });
  }
  State<Map> state(e);
  const Tiles grad_tiles = state.new_grad();
  const Scratch<Map> between(scratch_size(e));
  const Scratch<> own(scratch_size(e));
  each_group(e, [&](int begin, int end) {
    Group<Map> group(e, state.tiles, begin, end);
    group.differentiate(g);
    if (group.two) group.second_backward(g, between.data, own.data);
    group.first_backward(g, group.two ? between.data : g.z + begin * e.map(), group.two ? own.data : nullptr,
                         grad_tiles);
  });
  state.take(grad_tiles, g.grad_x);
}

template void separable_edges_forward(const SeparableEdges<float>&, const SeparableEdgesForward<float>&);
template void separable_edges_forward(const SeparableEdges<Narrow>&, const SeparableEdgesForward<Narrow>&);
template void separable_edges_backward(const SeparableEdges<float>&, const SeparableEdgesBackward<float>&);
template void separable_edges_backward(const SeparableEdges<Narrow>&, const SeparableEdgesBackward<Narrow>&);

}  // namespace bionas
