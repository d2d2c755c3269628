// The weighted sum of many maps into few, and the sums that its backward pass needs. Maps are [P, C], P positions.

#pragma once

#include <cstdint>

namespace bionas {

struct MixedSum {
  int64_t p, c;             // positions, channels (a multiple of 16)
  int edges, maps;
  const float* const* map;  // [K] pointers to [P, C]
  const int64_t* edge;      // [K], the edge that map k belongs to
};

// out[e] = Σ_{k of e} weight[k] · map[k] + offset[e]
void mixed_sum_forward(
    const MixedSum& m,
    const float* weight,  // [K, C]
    const float* offset,  // [E, C]
    float* out);          // [E, P, C]

void mixed_sum_backward(
    const MixedSum& m,
    const float* grad,     // [E, P, C]
    double* grad_sum,      // [E, C], Σ_p grad[e]
    double* product_sum);  // [K, C], Σ_p grad[edge of k] · map[k]

}  // namespace bionas
