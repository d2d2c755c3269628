// Weighted sums of maps, and the sums for the backward pass. Maps are [P, C], P positions.

#pragma once

#include <cstdint>

#include "narrow.h"

namespace bionas {

constexpr double variance_epsilon = 1e-5;  // of batch normalisation

// A map of floats or of narrow numbers.
struct AnyMap {
  AnyMap(const float* map) : data(map), narrow(false) {}
  AnyMap(const Narrow* map) : data(map), narrow(true) {}
  const void* data;
  bool narrow;
};

struct MixedSum {
  int64_t p, c;             // positions, channels (a multiple of 16)
  int edges, terms;
  const AnyMap* map;        // [T], [P, C] each; terms may share a map
  const int64_t* edge;      // [T], the sum that a term belongs to
};

// out[e] = Σ_{t of e} weight[t] · map[t] + offset[e] + into[e]
void mixed_sum_forward(
    const MixedSum& m,
    const float* weight,       // [T, C]
    const float* offset,       // [E, C]
    const float* const* into,  // [E] pointers to [P, C], each may be null; or null
    float* const* out);        // [E], may be the same as into

void mixed_sum_backward(
    const MixedSum& m,
    const float* const* grad,  // [E] pointers to [P, C]
    double* grad_sum,          // [E, C], Σ_p grad[e]
    double* product_sum);      // [T, C], Σ_p grad[edge of t] · map[t]

}  // namespace bionas
