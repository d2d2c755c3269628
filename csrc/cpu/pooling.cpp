#include "pooling.h"

#include "dispatch.h"
#include "shares.h"

namespace bionas {

namespace {

// The part of window `i` that lies inside [0, size).
struct Window {
  Window(int64_t i, int stride, int64_t size)
      : begin(i * stride > 0 ? i * stride - 1 : 0), end(i * stride + 2 < size ? i * stride + 2 : size) {}
  int64_t begin, end;
};

}  // namespace

}  // namespace bionas

#define BIONAS_KERNEL "pooling.inc"
#include "dispatch.inc"

namespace bionas {

template <class Map>
void pooling_forward(const Pooling<Map>& p, Map* z, double* sum, double* sum_sq) {
  const auto kernel = BIONAS_CHOOSE(pool_images<Map>);
  const int64_t size = 2 * p.c;
  Shares<double> shares(2 * size);
  parallel_for(p.n, 1, [&](int64_t begin, int64_t end) { kernel(p, z, shares.start(begin), begin, end); });
  for (int64_t i = 0; i < size; i++) sum[i] = sum_sq[i] = 0;
  shares.each([&](const double* sums) {
    for (int64_t i = 0; i < size; i++) {
      sum[i] += sums[i];
      sum_sq[i] += sums[size + i];
    }
  });
}

template <class Map>
void pooling_backward(const Pooling<Map>& p, const float* grad_max, const float* grad_average, float* grad_x) {
  const auto kernel = BIONAS_CHOOSE(unpool_images<Map>);
  parallel_for(p.n, 1, [&](int64_t begin, int64_t end) { kernel(p, grad_max, grad_average, grad_x, begin, end); });
}

template void pooling_forward(const Pooling<float>&, float*, double*, double*);
template void pooling_forward(const Pooling<Narrow>&, Narrow*, double*, double*);
template void pooling_backward(const Pooling<float>&, const float*, const float*, float*);
template void pooling_backward(const Pooling<Narrow>&, const float*, const float*, float*);

}  // namespace bionas
