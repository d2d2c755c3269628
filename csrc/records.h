// The records of kernels/records.py that come as a list of numbers, decoded and checked.

#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

namespace bionas::arguments {

using Ints = std::vector<int64_t>;

inline Ints part(const Ints& numbers, std::size_t begin, std::size_t count) {
  return Ints(numbers.begin() + begin, numbers.begin() + begin + count);
}

// Stage: the stride, the kernels of K branches, and their dilations.
struct StageRecord {
  StageRecord() = default;
  explicit StageRecord(const Ints& numbers) {
    STD_TORCH_CHECK(numbers.size() % 2 == 1, "stage: expected a stride and as many kernels as dilations");
    const std::size_t count = numbers.size() / 2;
    stride = numbers[0];
    kernels = part(numbers, 1, count);
    dilations = part(numbers, 1 + count, count);
    STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2");
    for (int64_t k : kernels) STD_TORCH_CHECK(k == 3 || k == 5, "kernels: expected 3 or 5");
    for (int64_t d : dilations) STD_TORCH_CHECK(d > 0, "dilations: expected numbers above 0");
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
    edges = part(numbers, 2, branches);
    first = StageRecord(part(numbers, 2 + branches, 1 + 2 * branches));
    STD_TORCH_CHECK(twice >= 0 && twice <= int64_t(branches), "twice: expected no more second stages than branches");
    for (int64_t e : edges) STD_TORCH_CHECK(e >= 0 && e < count, "edges: out of range");
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
    count = numbers[0];
    index = part(numbers, 1, terms);
    edges = part(numbers, 1 + terms, terms);
    for (int64_t e : edges) STD_TORCH_CHECK(e >= 0 && e < count, "edges: out of range");
  }

  int64_t count;
  Ints index, edges;
};

}  // namespace bionas::arguments
