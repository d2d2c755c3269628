// Maximum pooling of channels-first maps of floats or narrow numbers.

#pragma once

#include "planar.h"

namespace bionas {

// Maximum pooling 3×3 with a padding of 1, [N, C, H, W] to [N, C, ⌈H/stride⌉, ⌈W/stride⌉]. Among equal maxima the first in
// row-major order gets the gradient.
template <class Map>
struct PlanarPool {
  int64_t n, c, h, w;
  int64_t stride;  // 1 or 2
  Images<const Map> x;

  int64_t ho() const { return (h + stride - 1) / stride; }
  int64_t wo() const { return (w + stride - 1) / stride; }
};
template <class Map>
void planar_pool(const PlanarPool<Map>& p, Map* z);
template <class Map>
void planar_pool_backward(const PlanarPool<Map>& p, Images<const Map> grad, Map* grad_x);

}  // namespace bionas
