#include "feedback.h"

#define BIONAS_KERNEL "feedback.inc"
#include "dispatch.inc"

namespace bionas {

// About 50 µs of work, the least that is worth waking a thread.
constexpr int64_t grain = 1 << 14;

void feedback_weight(const FeedbackWeight& arguments) {
  const auto kernel = BIONAS_CHOOSE(feedback_weight_range);
  parallel_for(arguments.count, grain, [&](int64_t begin, int64_t end) { kernel(arguments, begin, end); });
}

void uniform(float* output, int64_t count, Stream stream) {
  const auto kernel = BIONAS_CHOOSE(uniform_range);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) { kernel(output, stream, begin, end); });
}

}  // namespace bionas
