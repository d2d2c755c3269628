// Feedback weights in memory of exactly their size, every mode under every instruction set.

#include "feedback.h"

#include <cmath>
#include <cstring>

#include "check.h"

using namespace bionas;

namespace {

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<float> weights(int64_t count, Mode mode) {
  std::vector<float> output(count), weight(count), stored(count);
  for (int64_t i = 0; i < count; ++i) {
    weight[i] = static_cast<float>(i % 5 - 2);
    stored[i] = static_cast<float>(i % 7 - 3);
  }
  feedback_weight({output.data(), weight.data(), count, mode, 0.5f, stored.data(), {~uint64_t{0}, 3}, 0.25f});
  for (int64_t i = 0; i < count; ++i)
    CHECK(std::signbit(output[i]) == std::signbit(weight[i]) || output[i] == 0.0f);
  return output;
}

std::vector<float> numbers(int64_t count) {
  std::vector<float> output(count);
  uniform(output.data(), count, {0, 0});
  return output;
}

}  // namespace

int main() {
  for (int64_t count : {0, 1, 2, 15, 16, 17, 100, 1023, 4099})
    for (Isa isa : all_isas) {
      if (!supported(isa)) continue;
      for (Mode mode : {Mode::sign, Mode::stored_sign, Mode::drawn_sign}) {
        set_isa(Isa::baseline);
        const std::vector<float> expected = weights(count, mode);
        set_isa(isa);
        CHECK(same(weights(count, mode), expected));
      }
      // The known answer of Philox4x32-10 for key 0, counter 0.
      CHECK(count == 0 || numbers(count)[0] == (0x6627E8D5 >> 8) * 0x1p-24f);
    }
}
