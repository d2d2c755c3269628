#include "hebbian.h"

#include <algorithm>

#include "buffer.h"
#include "dispatch.h"
#include "shares.h"

namespace bionas {

constexpr int64_t block = 64;  // positions: a cache line or more of each channel, and a thousand channels stay in L2
constexpr int64_t grain = 1 << 14;  // elements, about 10 µs, the least that is worth waking a thread
constexpr float norm_epsilon = 1e-12f, max_epsilon = 1e-30f;

}  // namespace bionas

#define BIONAS_KERNEL "hebbian.inc"
#include "dispatch.inc"

namespace bionas {

void hebbian_activity(const HebbianActivity& a, double* total) {
  const auto kernel = BIONAS_CHOOSE(hebbian_activity_range);
  const int64_t maps = a.n * a.groups * ((a.p + block - 1) / block), size = total ? a.k : 0;
  Shares<double> shares(size);
  if (a.k)
    parallel_for(maps, 1 + grain * a.groups / (a.k * block), [&](int64_t begin, int64_t end) {
      kernel(a, total ? shares.start(begin) : nullptr, begin, end);
    });
  std::fill_n(total, size, 0.0);
  shares.each([&](const double* sums) { for (int64_t c = 0; c < size; c++) total[c] += sums[c]; });
}

void hebbian_move(const HebbianMove& m) {
  const auto delta = BIONAS_CHOOSE(hebbian_delta);
  const auto filter = BIONAS_CHOOSE(hebbian_filter);
  const int64_t rows = 1 + grain / std::max(m.d, int64_t{1});
  if (m.normalisation != Normalisation::max)
    return parallel_for(m.k, rows, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) delta(m, row), filter(m, row, 1);
    });
  Buffer<float> largest(m.k);
  parallel_for(m.k, rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) largest.data()[row] = delta(m, row);
  });
  const int64_t each = m.k / m.groups;
  for (float* of = largest.data(); of < largest.data() + m.k; of += each) {
    float most = 0;
    for (int64_t i = 0; i < each; i++) most = of[i] > most || of[i] != of[i] ? of[i] : most;
    std::fill_n(of, each, most + max_epsilon);
  }
  parallel_for(m.k, rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) filter(m, row, largest.data()[row]);
  });
}

}  // namespace bionas
