// The records of kernels/records.py that come as a list of numbers, decoded and checked.

#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

namespace bionas::arguments {

using Ints = std::vector<int64_t>;

// Far above what any search has. Beyond, a result would take memory out of proportion to the arguments.
constexpr int64_t max_branches = 4096, max_edges = 4096, max_terms = 1 << 16, max_dilation = 64;
constexpr int64_t max_channels = 1 << 24;  // a tensor without elements may have many

inline void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  STD_TORCH_CHECK(value >= low && value <= high, name, ": expected ", low, " to ", high, ", got ", value);
}

inline void check_each(const char* name, const Ints& values, int64_t low, int64_t high) {
  for (int64_t value : values) check_range(name, value, low, high);
}

inline Ints part(const Ints& numbers, std::size_t begin, std::size_t count) {
  return Ints(numbers.begin() + begin, numbers.begin() + begin + count);
}

// Stage: the stride, the kernels of K branches, and their dilations.
struct StageRecord {
  StageRecord() = default;
  explicit StageRecord(const Ints& numbers) {
    STD_TORCH_CHECK(numbers.size() % 2 == 1, "stage: expected a stride and as many kernels as dilations");
    const std::size_t count = numbers.size() / 2;
    check_range("branches", int64_t(count), 0, max_branches);
    stride = numbers[0];
    kernels = part(numbers, 1, count);
    dilations = part(numbers, 1 + count, count);
    check_range("stride", stride, 1, 2);
    for (int64_t k : kernels) STD_TORCH_CHECK(k == 3 || k == 5, "kernels: expected 3 or 5, got ", k);
    check_each("dilations", dilations, 1, max_dilation);
  }

  int64_t stride = 1;
  Ints kernels, dilations;
};

// SeparablePlan: the number of edges, the number of branches with a second stage, the edges of K branches, and the
// first stage.
struct PlanRecord {
  explicit PlanRecord(const Ints& numbers) {
    STD_TORCH_CHECK(numbers.size() % 3 == 0 && !numbers.empty(),
                    "plan: expected a kernel, a dilation and an edge of each branch");
    const std::size_t branches = numbers.size() / 3 - 1;
    count = numbers[0];
    twice = numbers[1];
    check_range("edges", count, 1, max_edges);
    edges = part(numbers, 2, branches);
    first = StageRecord(part(numbers, 2 + branches, 1 + 2 * branches));
    check_range("twice", twice, 0, int64_t(branches));
    check_each("edges", edges, 0, count - 1);
    second.kernels = part(first.kernels, 0, twice);
    second.dilations = Ints(twice, 1);
  }

  int64_t count, twice;
  Ints edges;
  StageRecord first, second;
};

// Terms: the number of sums, the map that each of T terms reads, and the sum of each term.
struct TermsRecord {
  explicit TermsRecord(const Ints& numbers) {
    STD_TORCH_CHECK(numbers.size() % 2 == 1, "terms: expected a map and an edge of each");
    const std::size_t terms = numbers.size() / 2;
    check_range("terms", int64_t(terms), 0, max_terms);
    count = numbers[0];
    check_range("sums", count, 1, max_edges);
    index = part(numbers, 1, terms);
    edges = part(numbers, 1 + terms, terms);
    check_each("edges", edges, 0, count - 1);
  }

  int64_t count;
  Ints index, edges;
};

}  // namespace bionas::arguments
