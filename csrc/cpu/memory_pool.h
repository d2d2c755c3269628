// Memory for large tensors, kept when they are freed: the pages of a fresh block cost more than the kernels that fill
// them. A training step asks for the same sizes again and again, so nearly all of them are found.

#pragma once

#include <cstddef>
#include <cstdint>

namespace bionas {

// Smaller blocks are left to the allocator of torch.
constexpr std::size_t pooled_from = std::size_t{1} << 20;

// A block of at least so many bytes, aligned to a cache line, uninitialised. The pool never holds, in use or kept, more
// than half a percent above what has been in use at once. Throws std::bad_alloc.
void* take(std::size_t bytes);

// Gives a block back; any thread may.
void give(void* block);

// A large array of floats out of the pool, uninitialised.
struct Scratch {
  explicit Scratch(int64_t size) : data(size ? static_cast<float*>(take(size * sizeof(float))) : nullptr) {}
  ~Scratch() {
    if (data) give(data);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data;
};

// Frees all blocks that are not in use; how many bytes that were.
std::size_t release();

}  // namespace bionas
