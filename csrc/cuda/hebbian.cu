#include "hebbian.h"

#include <algorithm>
#include <stdexcept>

#include "hebbian.cuh"

namespace bionas::cuda {

namespace {

// Blocks in each dimension of a grid: a few per multiprocessor; more would only add partial sums.
constexpr int64_t max_blocks = 1024;

template <class... Parameters>
void launch(Stream stream, dim3 grid, dim3 block, void (*kernel)(Parameters...), Parameters... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// The number of rows, a power of two, with at least four items each.
int rows_for(int64_t count) {
  int rows = 1;
  while (rows < max_rows && rows * 8 <= count) rows *= 2;
  return rows;
}

int64_t blocks_of(const HebbianActivity& a) {
  return std::min(a.n * ((a.p + lanes - 1) / lanes), max_blocks);
}

auto* activity_kernel_of(Activity activity) {
  switch (activity) {
    case Activity::normalised: return activity_kernel<Activity::normalised>;
    case Activity::hard: return activity_kernel<Activity::hard>;
    case Activity::soft: return activity_kernel<Activity::soft>;
    case Activity::competing: return activity_kernel<Activity::competing>;
    default: return activity_kernel<Activity::linear>;
  }
}

dim3 threads_for(int64_t count) {
  int threads = lanes;
  while (threads < max_threads && threads * 2 <= count) threads *= 2;
  return dim3(threads);
}

}  // namespace

const char* obstacle() {
  cudaFuncAttributes unused;
  const cudaError_t error = cudaFuncGetAttributes(&unused, move_kernel);
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

int64_t activity_workspace(const HebbianActivity& a) { return blocks_of(a) * a.k; }

void hebbian_activity(const HebbianActivity& a, double* total, double* partial, Stream stream) {
  if (!a.k) return;
  const int64_t blocks = blocks_of(a);
  if (blocks)
    launch(stream, dim3(blocks, std::min(a.groups, max_blocks)), dim3(lanes, rows_for(a.k / a.groups)),
           activity_kernel_of(a.activity), a, total ? partial : nullptr);
  if (total)
    launch(stream, dim3((a.k + lanes - 1) / lanes), dim3(lanes, rows_for(blocks)), total_kernel,
           static_cast<const double*>(partial), blocks, a.k, total);
}

void hebbian_move(const HebbianMove& m, float* largest, Stream stream) {
  if (!m.k) return;
  if (m.normalisation == Normalisation::max)
    launch(stream, dim3(m.k), threads_for(m.d), largest_kernel, m, largest);
  launch(stream, dim3(m.k), threads_for(m.d), move_kernel, m, static_cast<const float*>(largest));
}

}  // namespace bionas::cuda
