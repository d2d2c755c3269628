// The pools in memory of exactly its size: forward against plain loops, backward by what the gradients add up to.

#include "pooling.h"

#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

void run(int64_t n, int64_t h, int64_t w, int stride) {
  const int64_t c = 16, ho = (h + stride - 1) / stride, wo = (w + stride - 1) / stride;
  std::vector<float> x(n * h * w * c), z(2 * n * ho * wo * c, NAN), grad(n * ho * wo * c, 1.0f), down(x.size(), NAN);
  for (std::size_t i = 0; i < x.size(); i++) x[i] = float((i * 7) % 5);
  std::vector<double> sum(2 * c, NAN), sum_sq(2 * c, NAN);
  const Pooling<float> p{n, h, w, c, ho, wo, stride, x.data()};
  pooling_forward(p, z.data(), sum.data(), sum_sq.data());
  for (int64_t i = 0; i < n * ho * wo * c; i++) {
    const int64_t channel = i % c, ox = i / c % wo, oy = i / (c * wo) % ho, image = i / (c * wo * ho);
    float most = -INFINITY, total = 0, count = 0;
    for (int64_t y = oy * stride - 1; y <= oy * stride + 1; y++)
      for (int64_t xx = ox * stride - 1; xx <= ox * stride + 1; xx++) {
        if (y < 0 || xx < 0 || y >= h || xx >= w) continue;
        const float v = x[((image * h + y) * w + xx) * c + channel];
        most = v > most ? v : most;
        total += v;
        count++;
      }
    CHECK(z[i] == most);
    CHECK(std::fabs(z[n * ho * wo * c + i] - total / count) < 1e-5);
  }
  pooling_backward(p, grad.data(), grad.data(), down.data());
  double all = 0;
  for (float value : down) all += value;
  CHECK(std::fabs(all - 2.0 * double(grad.size())) < 1e-3 * double(grad.size()));
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (int stride : {1, 2})
      for (int64_t h : {1, 2, 5})
        for (int64_t w : {1, 4, 7}) run(4, h, w, stride);
  }
}
