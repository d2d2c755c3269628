// The 3×3 pools of a cell, maximum and average, in one pass, with the sums for batch normalisation.

#pragma once

#include <cstdint>

#include "narrow.h"

namespace bionas {

// Map: the numbers of maps, float or Narrow; the sums are those of the floats before they are rounded.
template <class Map>
struct Pooling {
  int64_t n, h, w, c;  // input, C a multiple of 16
  int64_t ho, wo;      // output, ⌈h/stride⌉, ⌈w/stride⌉
  int stride;          // 1 or 2; padding is 1
  const Map* x;        // [N, H, W, C]
};

template <class Map>
void pooling_forward(
    const Pooling<Map>& p,
    Map* z,           // [2, N, H_out, W_out, C]: the maximum, then the average of what is not padding
    double* sum,      // [2, C], Σ z
    double* sum_sq);  // [2, C], Σ z²

template <class Map>
void pooling_backward(
    const Pooling<Map>& p,
    const float* grad_max,      // [N, H_out, W_out, C]
    const float* grad_average,  // [N, H_out, W_out, C]
    float* grad_x);             // [N, H, W, C]; among equal maxima the first in row-major order gets the gradient

}  // namespace bionas
