// Kernels of Hebbian updates, specified in ../cpu/hebbian.h. Every sum is computed in a fixed order, so results are
// deterministic.

#pragma once

#include "../cpu/hebbian.h"

namespace bionas::cuda {

constexpr int lanes = 32;  // neighbouring positions, one per thread of a warp
constexpr int max_rows = 8;  // warps of a block
constexpr float norm_epsilon = 1e-12f, max_epsilon = 1e-30f;

// Combines the values of all rows at a position, in the order of the rows.
template <class T, class Combine>
__device__ T across_rows(T own, Combine combine) {
  __shared__ T shares[max_rows][lanes];
  shares[threadIdx.y][threadIdx.x] = own;
  __syncthreads();
  T all = shares[0][threadIdx.x];
  for (int row = 1; row < int(blockDim.y); row++) all = combine(all, shares[row][threadIdx.x]);
  __syncthreads();
  return all;
}

struct Peak {
  float largest, lowest;
  int winner;
};

// As torch.argmax: the first of equal values, and NaN before all numbers.
__device__ inline Peak higher(Peak a, Peak b) {
  const bool a_nan = a.largest != a.largest, b_nan = b.largest != b.largest;
  const bool equal = a.largest == b.largest || (a_nan && b_nan);
  const bool a_wins = equal ? a.winner < b.winner : a_nan || a.largest > b.largest;
  return {a_wins ? a.largest : b.largest, b.lowest < a.lowest ? b.lowest : a.lowest, a_wins ? a.winner : b.winner};
}

__device__ inline float at_least(float x, float low) { return x < low ? low : x; }  // propagates NaN

// Blocks of [rows][lanes] threads take `lanes` positions at a time, each row every rows-th channel of a group.
template <Activity ACTIVITY>
__global__ void __launch_bounds__(lanes* max_rows) activity_kernel(
    HebbianActivity a,
    double* partial) {  // [gridDim.x, K], the decay's sums over a block's positions; or null
  constexpr bool soft = ACTIVITY == Activity::soft || ACTIVITY == Activity::competing;
  constexpr bool competes = soft || ACTIVITY == Activity::hard;
  __shared__ float terms[max_rows][lanes][lanes + 1];  // [row][channel][position]; the odd length spreads over banks
  const int lane = threadIdx.x, row = threadIdx.y, rows = blockDim.y, channels = int(a.k / a.groups);
  const int64_t tiles_of_image = (a.p + lanes - 1) / lanes, tiles = a.n * tiles_of_image;
  const auto add = [](float x, float y) { return x + y; };

  for (int64_t group = blockIdx.y; group < a.groups; group += gridDim.y)
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int64_t map = tile / tiles_of_image * a.groups + group, p = tile % tiles_of_image * lanes + lane;
      const int64_t offset = map * channels * a.p + p;
      const bool inside = p < a.p;
      const auto u = [&](int c) { return inside ? __ldg(a.u + offset + c * a.p) : 0.0f; };

      float factor = 1 / at_least(a.norm && inside ? a.norm[map * a.p + p] : 1.0f, norm_epsilon);
      Peak peak{};
      if constexpr (ACTIVITY == Activity::normalised) {
        float squares = 0;
        for (int c = row; c < channels; c += rows) squares += u(c) * u(c);
        factor /= at_least(sqrtf(across_rows(squares, add)), norm_epsilon);
      }
      if constexpr (competes) {
        peak = {u(row), u(row), row};
        for (int c = row + rows; c < channels; c += rows) peak = higher(peak, {u(c), u(c), c});
        peak = across_rows(peak, higher);
      }
      const float from = a.temperature < 0 ? peak.lowest : peak.largest;
      const auto exponential = [&](int c) {
        const float z = a.temperature * (u(c) - from);
        return z < -69.3f ? 0.0f : expf(z);  // 2^-100
      };
      if constexpr (soft) {
        float sum = 0;
        for (int c = row; c < channels; c += rows) sum += exponential(c);
        factor /= across_rows(sum, add);
      }

      for (int first = row; first < channels; first += rows * lanes) {
        const int left = (channels - first + rows - 1) / rows, count = left < lanes ? left : lanes;
        for (int i = 0; i < count; i++) {
          const int c = first + i * rows;
          float value = factor;
          if constexpr (soft) value *= exponential(c);
          else if constexpr (ACTIVITY == Activity::hard) value = c == peak.winner ? value : 0.0f;
          else value *= a.external && inside ? a.external[offset + c * a.p] : u(c);
          if constexpr (ACTIVITY == Activity::competing) value = c == peak.winner ? value : -value;
          if (a.y && inside) a.y[offset + c * a.p] = value;
          const float term = a.decay == Decay::square ? value * value : a.decay == Decay::output ? value * u(c) : value;
          terms[row][i][lane] = inside ? term : 0.0f;
        }
        if (!partial) continue;
        __syncwarp();
        if (lane < count) {  // here one thread per channel
          float sum = 0;
          for (int i = 0; i < lanes; i++) sum += terms[row][lane][i];
          double& total = partial[blockIdx.x * a.k + group * channels + first + lane * rows];
          total = tile == blockIdx.x ? sum : total + sum;
        }
        __syncwarp();
      }
    }
}

// Blocks of [rows][lanes] threads: `lanes` channels, of which each row sums every rows-th of the partial sums.
static __global__ void __launch_bounds__(lanes* max_rows) total_kernel(
    const double* partial,  // [parts, K]
    int64_t parts, int64_t k,
    double* total) {  // [K]
  const int64_t c = blockIdx.x * int64_t(lanes) + threadIdx.x;
  double sum = 0;
  if (c < k)
    for (int64_t i = threadIdx.y; i < parts; i += blockDim.y) sum += partial[i * k + c];
  sum = across_rows(sum, [](double x, double y) { return x + y; });
  if (c < k && threadIdx.y == 0) total[c] = sum;
}

constexpr int max_threads = 256;

// Combines the values of the threads of a block in a tree; their number is a power of two.
template <class Combine>
__device__ float across_block(float own, Combine combine) {
  __shared__ float shares[max_threads];
  const int thread = threadIdx.x;
  shares[thread] = own;
  for (int half = blockDim.x / 2; half; half /= 2) {
    __syncthreads();
    if (thread < half) shares[thread] = combine(shares[thread], shares[thread + half]);
  }
  __syncthreads();
  return shares[0];
}

struct Larger {
  __device__ float operator()(float a, float b) const { return a > b || a != a ? a : b; }  // NaN is the largest
};

// Δ of one weight, before normalisation.
__device__ inline float change(const HebbianMove& m, int64_t row, int64_t i) {
  const float outer = m.delta[row * m.d + i];
  return (m.total ? outer - float(m.total[row]) * m.weight[row * m.d + i] : outer) * float(1 / m.positions);
}

// One block per filter.
static __global__ void __launch_bounds__(max_threads) largest_kernel(
    HebbianMove m,
    float* largest) {  // [K], max |Δ| of a filter
  float most = 0;
  for (int64_t i = threadIdx.x; i < m.d; i += blockDim.x) most = Larger()(fabsf(change(m, blockIdx.x, i)), most);
  most = across_block(most, Larger());
  if (threadIdx.x == 0) largest[blockIdx.x] = most;
}

// One block per filter.
static __global__ void __launch_bounds__(max_threads) move_kernel(
    HebbianMove m,
    const float* largest) {  // [K], with Normalisation::max only
  const int64_t row = blockIdx.x, each = m.k / m.groups, group = row / each;
  float divisor = 1;
  if (m.normalisation == Normalisation::max) {
    float most = 0;
    for (int64_t i = threadIdx.x; i < each; i += blockDim.x) most = Larger()(largest[group * each + i], most);
    divisor = across_block(most, Larger()) + max_epsilon;
  }
  const float rate = m.rate[row];
  float squares = 0;
  for (int64_t i = threadIdx.x; i < m.d; i += blockDim.x) {
    const float delta = change(m, row, i) / divisor;
    float w = m.weight[row * m.d + i] + rate * delta;
    if (m.normalisation == Normalisation::clamp) w = w < -1 ? -1 : w > 1 ? 1 : w;
    m.delta[row * m.d + i] = delta;
    m.weight[row * m.d + i] = w;
    squares += w * w;
  }
  if (m.normalisation == Normalisation::unit) {
    const float norm = sqrtf(across_block(squares, [](float a, float b) { return a + b; }));
    for (int64_t i = threadIdx.x; i < m.d; i += blockDim.x) m.weight[row * m.d + i] /= at_least(norm, norm_epsilon);
  }
}

}  // namespace bionas::cuda
