// Factorized reductions of one input, all at once: R strided identities, with the sums for batch normalisation.

#pragma once

#include <cstdint>

#include "narrow.h"

namespace bionas {

// z_r[y, x] is W1_r · ReLU(x[2y, 2x]), then W2_r · ReLU(x[2y + 1, 2x + 1]), which is 0 past the end, then zeros.
// Map: the numbers of maps, float or Narrow; the sums are those of the floats before they are rounded.
template <class Map>
struct FactorizedReduce {
  int64_t n, h, w, c;  // input, C a multiple of 16
  int64_t ho, wo;      // output, ⌈h/2⌉, ⌈w/2⌉
  int64_t count;       // R
  int64_t own;         // the channels that the weights have, c of C
  const Map* x;        // [N, H, W, C]
  // The matrices of the products: the weights forward, the feedback backward.
  const float* first;   // [R, ⌈c/2⌉, c]
  const float* second;  // [R, ⌊c/2⌋, c]
  int64_t images = 1;   // side by side in the channels, each with C / images of them

  int64_t width() const { return c / images; }
};

template <class Map>
void factorized_reduce_forward(
    const FactorizedReduce<Map>& s,
    Map* z,           // [R, N, H_out, W_out, C]
    double* sum,      // [R, C], Σ z
    double* sum_sq);  // [R, C], Σ z²

// The gradient of z is a · grad + b · z + d, per channel: the backward pass of batch normalisation, fused.
template <class Map>
struct FactorizedReduceBackward {
  const float* const* grad;  // R times [N, H_out, W_out, C], several may be one
  const Map* z;              // [R, N, H_out, W_out, C]
  const float *a, *b, *d;    // [R, C]
  float* grad_x;             // [N, H, W, C]
  float* first_grad;         // [R, ⌈c/2⌉, c], exact, or null
  float* second_grad;        // [R, ⌊c/2⌋, c], or null
};

template <class Map>
void factorized_reduce_backward(const FactorizedReduce<Map>& s, const FactorizedReduceBackward<Map>& g);

}  // namespace bionas
