// Maximum pooling of channels-first maps.

#pragma once

#include "planar.h"

namespace bionas {

// Maximum pooling 3×3 with a padding of 1, [N, C, H, W] to [N, C, ⌈H/stride⌉, ⌈W/stride⌉]. Among equal maxima the first in
// row-major order gets the gradient.
struct PlanarPool {
  int64_t n, c, h, w;
  int64_t stride;  // 1 or 2
  Images<const float> x;

  int64_t ho() const { return (h + stride - 1) / stride; }
  int64_t wo() const { return (w + stride - 1) / stride; }
};
void planar_pool(const PlanarPool& p, float* z);
void planar_pool_backward(const PlanarPool& p, Images<const float> grad, float* grad_x);

}  // namespace bionas
