// Scratch memory aligned to a cache line.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace bionas {

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size, bool zeroed = false) : bytes_((size * sizeof(T) + 63) / 64 * 64) {
    if (!bytes_) return;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes_));
    if (!data_) throw std::bad_alloc();
    if (zeroed) zero();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }
  const T* data() const { return data_; }
  void zero() { if (bytes_) std::memset(data_, 0, bytes_); }

 private:
  std::size_t bytes_;
  T* data_ = nullptr;
};

}  // namespace bionas
