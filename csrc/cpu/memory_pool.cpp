#include "memory_pool.h"

#include <cstdlib>
#include <list>
#include <mutex>
#include <new>
#include <unordered_map>

namespace bionas {

namespace {

constexpr std::size_t page = 4096;

struct Block {
  void* data;
  std::size_t bytes;
};

class Pool {
 public:
  void* take(std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes = (bytes + page - 1) / page * page;
    auto best = kept_.end();
    for (auto block = kept_.begin(); block != kept_.end(); ++block)
      if (block->bytes >= bytes && block->bytes <= bytes + bytes / 4 && (best == kept_.end() || block->bytes < best->bytes))
        best = block;
    Block found{};
    if (best != kept_.end()) {
      found = *best;
      kept_bytes_ -= found.bytes;
      kept_.erase(best);
    }
    used_bytes_ += found.data ? found.bytes : bytes;
    peak_ = used_bytes_ > peak_ ? used_bytes_ : peak_;
    if (!found.data) {
      // Without slack, steps that request the same sizes in another order would free and allocate in every step.
      shrink(peak_ + peak_ / 200);
      found = {std::aligned_alloc(page, bytes), bytes};
      if (!found.data) {
        shrink(0);
        found.data = std::aligned_alloc(page, bytes);
      }
      if (!found.data) {
        used_bytes_ -= bytes;
        throw std::bad_alloc();
      }
    }
    used_[found.data] = found.bytes;
    return found.data;
  }

  void give(void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto block = used_.find(data);
    kept_.push_back({data, block->second});
    kept_bytes_ += block->second;
    used_bytes_ -= block->second;
    used_.erase(block);
  }

  std::size_t release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::size_t bytes = kept_bytes_;
    shrink(0);
    peak_ = used_bytes_;
    return bytes;
  }

 private:
  // Frees cached blocks, least recently released first, until used and cached memory are at most `total`.
  void shrink(std::size_t total) {
    while (!kept_.empty() && used_bytes_ + kept_bytes_ > total) {
      kept_bytes_ -= kept_.front().bytes;
      std::free(kept_.front().data);
      kept_.pop_front();
    }
  }

  std::mutex mutex_;
  std::list<Block> kept_;
  std::unordered_map<void*, std::size_t> used_;
  std::size_t kept_bytes_ = 0, used_bytes_ = 0, peak_ = 0;
};

// Never destroyed: tensors may outlive it at the end of the process.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

void* take(std::size_t bytes) { return pool().take(bytes); }
void give(void* block) { pool().give(block); }
std::size_t release() { return pool().release(); }

}  // namespace bionas
