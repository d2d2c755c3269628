// Channels-first pooling in memory of exactly its size: forward against plain loops, backward by what gradients add up to.

#include "planar_pool.h"

#include <algorithm>
#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

void pool(int64_t h, int64_t w, int64_t stride) {
  std::vector<float> x(2 * 3 * h * w);
  for (std::size_t i = 0; i < x.size(); i++) x[i] = float((i * 7) % 5);
  const PlanarPool p{2, 3, h, w, stride, {x.data(), 3 * h * w}};
  const int64_t size = p.ho() * p.wo();
  std::vector<float> z(6 * size, NAN), down(x.size(), NAN);
  const std::vector<float> grad(6 * size, 1.0f);
  planar_pool(p, z.data());
  for (int64_t i = 0; i < 6 * size; i++) {
    float most = -INFINITY;
    for (int64_t y = i % size / p.wo() * stride - 1, t = 0; t < 3; t++, y++)
      for (int64_t xx = i % p.wo() * stride - 1, u = 0; u < 3; u++, xx++)
        if (y >= 0 && xx >= 0 && y < h && xx < w) most = std::max(most, x[(i / size * h + y) * w + xx]);
    CHECK(z[i] == most);
  }
  planar_pool_backward(p, {grad.data(), 3 * size}, down.data());
  double all = 0;
  for (float value : down) all += value;
  CHECK(std::fabs(all - double(grad.size())) < 1e-3);
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (int64_t stride : {1, 2})
      for (int64_t h : {1, 2, 5})
        for (int64_t w : {1, 4, 19}) pool(h, w, stride);
  }
}
