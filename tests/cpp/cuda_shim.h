// As much of CUDA as lets a C++20 compiler take a .cu file that is included behind this as part of a host program. Every
// thread of a block is a thread of the host, __syncthreads and __syncwarp are barriers, shared memory is static; so a
// sanitizer sees what the threads of a block do to each other. The blocks of a grid run one after the other.

#pragma once

#include <barrier>
#include <cmath>
#include <cstddef>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace shim {

constexpr unsigned warp_size = 32;

inline bool backwards = false;  // the order of the blocks, on which nothing may depend

// Of the block that runs.
inline std::unique_ptr<std::barrier<>> block;
inline std::deque<std::barrier<>> warps;

inline unsigned thread_in_block() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }

inline dim3 place(unsigned index, dim3 size) {
  return {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

}  // namespace shim

inline void __syncthreads() { shim::block->arrive_and_wait(); }
inline void __syncwarp() { shim::warps[shim::thread_in_block() / shim::warp_size].arrive_and_wait(); }

template <class T>
T __ldg(const T* address) {
  return *address;
}

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
using cudaStream_t = void*;
struct cudaFuncAttributes {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
  blockDim = config->blockDim, gridDim = config->gridDim;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z, blocks = gridDim.x * gridDim.y * gridDim.z;
  if (!threads || threads > 1024 || !blocks || gridDim.y > 65535 || gridDim.z > 65535)
    return cudaErrorInvalidConfiguration;
  shim::block = std::make_unique<std::barrier<>>(threads);
  shim::warps.clear();
  for (unsigned first = 0; first < threads; first += shim::warp_size)
    shim::warps.emplace_back(threads - first < shim::warp_size ? threads - first : shim::warp_size);
  std::vector<std::thread> running;
  for (unsigned thread = 0; thread < threads; thread++)
    running.emplace_back([=] {
      threadIdx = shim::place(thread, blockDim);
      for (unsigned i = 0; i < blocks; i++) {
        blockIdx = shim::place(shim::backwards ? blocks - 1 - i : i, gridDim);
        kernel(arguments...);
        __syncthreads();
      }
    });
  for (std::thread& thread : running) thread.join();
  return cudaSuccess;
}
