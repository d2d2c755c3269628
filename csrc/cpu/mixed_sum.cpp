#include "mixed_sum.h"

#include <type_traits>

#include "dispatch.h"
#include "shares.h"

namespace bionas {

constexpr int64_t block = 128;  // positions: a block of the result stays in the L1 cache while maps stream through

}  // namespace bionas

#define BIONAS_KERNEL "mixed_sum.inc"
#include "dispatch.inc"

namespace bionas {

void mixed_sum_forward(
    const MixedSum& m, const float* weight, const float* offset, const float* const* into, float* const* out) {
  const auto kernel = BIONAS_CHOOSE(mixed_forward);
  parallel_for(m.p, block, [&](int64_t begin, int64_t end) { kernel(m, weight, offset, into, out, begin, end); });
}

void mixed_sum_backward(const MixedSum& m, const float* const* grad, double* grad_sum, double* product_sum) {
  const auto kernel = BIONAS_CHOOSE(mixed_backward);
  const int64_t size = (m.edges + m.terms) * m.c, split = m.edges * m.c;
  Shares<double> shares(size);
  parallel_for(m.p, block, [&](int64_t begin, int64_t end) { kernel(m, grad, shares.start(begin), begin, end); });
  for (int64_t i = 0; i < size; i++) (i < split ? grad_sum[i] : product_sum[i - split]) = 0;
  shares.each([&](const double* sums) {
    for (int64_t i = 0; i < size; i++) (i < split ? grad_sum[i] : product_sum[i - split]) += sums[i];
  });
}

}  // namespace bionas
