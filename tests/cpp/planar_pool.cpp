// Channels-first pooling in memory of exactly its size: forward against plain loops, backward by what gradients add up to.

#include "planar_pool.h"

#include <algorithm>
#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

template <class Map>
void pool(int64_t h, int64_t w, int64_t stride) {
  std::vector<Map> x(2 * 3 * h * w);
  for (std::size_t i = 0; i < x.size(); i++) assign(x[i], float((i * 7) % 5));
  const PlanarPool<Map> p{2, 3, h, w, stride, {x.data(), 3 * h * w}};
  const int64_t size = p.ho() * p.wo();
  std::vector<Map> z(6 * size), down(x.size()), grad(6 * size);
  for (Map& value : grad) assign(value, 1.0f);
  planar_pool(p, z.data());
  for (int64_t i = 0; i < 6 * size; i++) {
    float most = -INFINITY;
    for (int64_t y = i % size / p.wo() * stride - 1, t = 0; t < 3; t++, y++)
      for (int64_t xx = i % p.wo() * stride - 1, u = 0; u < 3; u++, xx++)
        if (y >= 0 && xx >= 0 && y < h && xx < w) most = std::max(most, wide(x[(i / size * h + y) * w + xx]));
    CHECK(wide(z[i]) == most);
  }
  planar_pool_backward(p, {grad.data(), 3 * size}, down.data());
  double all = 0;
  for (Map value : down) all += wide(value);
  CHECK(std::fabs(all - double(grad.size())) < 1e-3);
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (int64_t stride : {1, 2})
      for (int64_t h : {1, 2, 5})
        for (int64_t w : {1, 4, 19}) {
          pool<float>(h, w, stride);
          pool<Narrow>(h, w, stride);
        }
  }
}
