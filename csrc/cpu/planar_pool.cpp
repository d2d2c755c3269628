#include "planar_pool.h"

#include <limits>
#include <type_traits>

#include "buffer.h"
#include "dispatch.h"

#define BIONAS_KERNEL "planar_pool.inc"
#include "dispatch.inc"

namespace bionas {

void planar_pool(const PlanarPool& p, float* z) {
  const auto kernel = BIONAS_CHOOSE(planar_pool_images);
  parallel_for(p.n, 1, [&](int64_t begin, int64_t end) { kernel(p, z, begin, end); });
}

void planar_pool_backward(const PlanarPool& p, Images<const float> grad, float* grad_x) {
  const auto kernel = BIONAS_CHOOSE(planar_unpool_images);
  parallel_for(p.n, 1, [&](int64_t begin, int64_t end) { kernel(p, grad, grad_x, begin, end); });
}

}  // namespace bionas
