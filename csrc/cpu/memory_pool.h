// A caching allocator for large tensors: mapping the pages of a new block costs more than the kernels that fill it.
// Training steps request the same sizes repeatedly, so nearly all requests are served from the cache.

#pragma once

#include <cstddef>
#include <cstdint>

namespace bionas {

// Smaller blocks are left to the allocator of torch.
constexpr std::size_t pooled_from = std::size_t{1} << 20;

// A block of at least this many bytes, aligned to a cache line, uninitialised. The pool, used and cached, never exceeds
// the peak memory in use by more than half a per cent. Throws std::bad_alloc.
void* take(std::size_t bytes);

// Releases a block; callable from any thread.
void give(void* block);

// A large array out of the pool, uninitialised.
template <class T = float>
struct Scratch {
  explicit Scratch(int64_t size) : data(size ? static_cast<T*>(take(size * sizeof(T))) : nullptr) {}
  ~Scratch() {
    if (data) give(data);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data;
};

// Frees all unused blocks; returns the number of bytes.
std::size_t release();

}  // namespace bionas
