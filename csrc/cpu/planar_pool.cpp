#include "planar_pool.h"

#include <limits>
#include <type_traits>

#include "buffer.h"
#include "dispatch.h"

#define BIONAS_KERNEL "planar_pool.inc"
#include "dispatch.inc"

namespace bionas {

template <class Map>
void planar_pool(const PlanarPool<Map>& p, Map* z) {
  const auto kernel = BIONAS_CHOOSE(planar_pool_images<Map>);
  parallel_for(p.n, 1, [&](int64_t begin, int64_t end) { kernel(p, z, begin, end); });
}

template <class Map>
void planar_pool_backward(const PlanarPool<Map>& p, Images<const Map> grad, Map* grad_x) {
  const auto kernel = BIONAS_CHOOSE(planar_unpool_images<Map>);
  parallel_for(p.n, 1, [&](int64_t begin, int64_t end) { kernel(p, grad, grad_x, begin, end); });
}

template void planar_pool(const PlanarPool<float>&, float*);
template void planar_pool(const PlanarPool<Narrow>&, Narrow*);
template void planar_pool_backward(const PlanarPool<float>&, Images<const float>, float*);
template void planar_pool_backward(const PlanarPool<Narrow>&, Images<const Narrow>, Narrow*);

}  // namespace bionas
