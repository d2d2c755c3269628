// The pool of memory under several threads.

#include "memory_pool.h"

#include <cstring>

#include "check.h"

using namespace bionas;

int main() {
  std::vector<std::thread> threads;
  for (int id = 1; id <= 3; id++)
    threads.emplace_back([id] {
      for (int round = 0; round < 50; round++) {
        const std::size_t bytes = pooled_from + std::size_t(1000 * ((round * id) % 7));
        char* block = static_cast<char*>(take(bytes));
        CHECK(reinterpret_cast<std::uintptr_t>(block) % 64 == 0);
        block[0] = block[bytes - 1] = char(id);
        CHECK(block[0] == id && block[bytes - 1] == id);
        give(block);
      }
    });
  for (std::thread& thread : threads) thread.join();

  release();
  void* first = take(4 << 20);
  give(first);
  CHECK(take(4 << 20) == first);     // found again
  void* second = take(1 << 20);      // while the first is in use: a block of its own
  CHECK(second != first);
  give(first);
  give(second);
  CHECK(release() == std::size_t{5 << 20});
  CHECK(release() == 0);
}
