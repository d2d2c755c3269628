// What a program that runs kernels under a sanitizer needs in place of torch: threads, and a way to fail.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "dispatch.h"

#define CHECK(condition)                                                                   \
  do {                                                                                     \
    if (!(condition)) {                                                                    \
      std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition);        \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (0)

namespace bionas {

// Three threads however little there is to do, so that pieces begin and end anywhere.
void parallel_for(int64_t count, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  constexpr int64_t pieces = 3;
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < pieces; ++i) {
    const int64_t begin = count * i / pieces, end = count * (i + 1) / pieces;
    if (begin < end) threads.emplace_back(body, begin, end, context);
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace bionas
