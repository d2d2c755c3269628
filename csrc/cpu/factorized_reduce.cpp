#include "factorized_reduce.h"

#include <type_traits>

#include "buffer.h"
#include "dispatch.h"
#include "shares.h"

namespace bionas {

namespace {

// Positions per block: the output of one kernel stays in the L1 cache for the next.
constexpr int64_t block = 64;

// Output rows whose grids are kept for all reductions: several blocks, in the L2 cache.
template <class Map>
int64_t rows_at_once(const FactorizedReduce<Map>& s) { return 1 + 4 * block / (1 + s.wo); }

// The matrix of each reduction and grid, [C, C]: a block for each image, zero for the other grid's half of z.
struct Packed {
  template <class Map>
  Packed(const FactorizedReduce<Map>& s, bool backward) : c(s.c), data(2 * s.count * c * c, true) {
    const int64_t half = s.own - s.own / 2;
    for (int64_t r = 0; r < s.count; r++)
      for (int64_t i = 0; i < s.own; i++)
        for (int64_t j = 0; j < s.own; j++) {
          const float value = i < half ? s.first[(r * half + i) * s.own + j]
                                       : s.second[(r * (s.own - half) + i - half) * s.own + j];
          float* matrix = data.data() + (2 * r + (i >= half)) * c * c;
          for (int64_t p = 0; p < s.images; p++)
            matrix[(backward ? i * c + j : j * c + i) + p * s.width() * (c + 1)] = value;
        }
  }

  // [C_in, C_out] forward, [C_out, C_in] backward.
  const float* matrix(int64_t r, int grid) const { return data.data() + (2 * r + grid) * c * c; }

  int64_t c;
  Buffer<float> data;
};

}  // namespace

}  // namespace bionas

#define BIONAS_KERNEL "factorized_reduce.inc"
#include "dispatch.inc"

namespace bionas {

template <class Map>
void factorized_reduce_forward(const FactorizedReduce<Map>& s, Map* z, double* sum, double* sum_sq) {
  const Packed packed(s, false);
  const auto kernel = BIONAS_CHOOSE(reduce_rows<Map>);
  const int64_t size = s.count * s.c;
  Shares<double> shares(2 * size);
  parallel_for(s.n * s.ho, rows_at_once(s), [&](int64_t begin, int64_t end) {
    kernel(s, packed, z, shares.start(begin), begin, end);
  });
  for (int64_t i = 0; i < size; i++) sum[i] = sum_sq[i] = 0;
  shares.each([&](const double* sums) {
    for (int64_t r = 0; r < s.count; r++)
      for (int64_t i = 0; i < s.c; i++) {
        sum[r * s.c + i] += sums[2 * r * s.c + i];
        sum_sq[r * s.c + i] += sums[(2 * r + 1) * s.c + i];
      }
  });
}

template <class Map>
void factorized_reduce_backward(const FactorizedReduce<Map>& s, const FactorizedReduceBackward<Map>& g) {
  const Packed packed(s, true);
  const auto kernel = BIONAS_CHOOSE(carry_rows_down<Map>);
  const int64_t c = s.c, half = s.own - s.own / 2;
  Shares<float> shares(g.first_grad ? 2 * s.count * c * c : 0);
  parallel_for(s.n * s.ho, rows_at_once(s), [&](int64_t begin, int64_t end) {
    kernel(s, g, packed, shares.start(begin), begin, end);
  });
  if (!g.first_grad) return;
  for (int64_t i = 0; i < s.count * half * s.own; i++) g.first_grad[i] = 0;
  for (int64_t i = 0; i < s.count * (s.own - half) * s.own; i++) g.second_grad[i] = 0;
  shares.each([&](const float* share) {
    for (int64_t r = 0; r < s.count; r++)
      for (int64_t i = 0; i < s.own; i++) {
        const float* block = share + ((2 * r + (i >= half)) * c + i) * c;
        float* to = i < half ? g.first_grad + (r * half + i) * s.own
                             : g.second_grad + (r * (s.own - half) + i - half) * s.own;
        for (int64_t p = 0; p < s.images; p++)
          for (int64_t j = 0; j < s.own; j++) to[j] += block[p * s.width() * (c + 1) + j];
      }
  });
}

template void factorized_reduce_forward(const FactorizedReduce<float>&, float*, double*, double*);
template void factorized_reduce_forward(const FactorizedReduce<Narrow>&, Narrow*, double*, double*);
template void factorized_reduce_backward(const FactorizedReduce<float>&, const FactorizedReduceBackward<float>&);
template void factorized_reduce_backward(const FactorizedReduce<Narrow>&, const FactorizedReduceBackward<Narrow>&);

}  // namespace bionas
