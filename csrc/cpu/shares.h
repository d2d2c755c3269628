// Reductions over the threads of a parallel loop.

#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "buffer.h"

namespace bionas {

// One array of zeros for each piece of the loop. The arrays are added in order of their pieces' first index, so
// results are deterministic.
template <class T>
class Shares {
 public:
  explicit Shares(int64_t size) : size_(size) {}

  T* start(int64_t begin) {
    auto share = std::make_unique<Buffer<T>>(size_, true);
    T* data = share->data();
    const std::lock_guard<std::mutex> lock(mutex_);
    shares_[begin] = std::move(share);
    return data;
  }

  template <class Add>
  void each(const Add& add) {
    for (auto& [begin, share] : shares_) add(static_cast<const T*>(share->data()));
  }

 private:
  int64_t size_;
  std::mutex mutex_;
  std::map<int64_t, std::unique_ptr<Buffer<T>>> shares_;
};

}  // namespace bionas
