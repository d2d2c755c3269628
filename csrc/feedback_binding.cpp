// The feedback of many layers at once as an operator of torch; see binding.cpp.

#include "arguments.h"
#include "cpu/dispatch.h"
#include "cpu/feedback.h"

namespace {

using namespace bionas::arguments;

// As bionas_fast.rules.MODES counts them.
enum Mode : int64_t { weight_itself, stored_tensor, constant_sign, stored_sign, drawn_sign, direct, custom };

// B of many layers whose weights lie one after the other; 0 where the mode is custom.
Tensor feedback_segments(
    const Tensor& weight,                 // flat
    const std::optional<Tensor>& stored,  // flat, of the segments whose mode reads it, one after the other
    const std::optional<Tensor>& stream,  // int64 [segments, 2]
    const Tensor& segments,               // int64 [segments, 2], length and mode
    const Tensor& magnitudes) {           // float64 [segments, 2], bound and scale
  check("weight", weight);
  check("segments", segments, ScalarType::Long);
  check("magnitudes", magnitudes, ScalarType::Double);
  const int64_t count = segments.numel() / 2;
  STD_TORCH_CHECK(int64_t(magnitudes.numel()) == 2 * count, "magnitudes: expected as many as segments");
  const int64_t* segment = segments.const_data_ptr<int64_t>();
  const double* magnitude = magnitudes.const_data_ptr<double>();
  const float* kept = pointer("stored", stored);
  if (stream.has_value()) check("stream", *stream, ScalarType::Long);
  const int64_t* words = stream.has_value() ? stream->const_data_ptr<int64_t>() : nullptr;
  Tensor output = new_map(weight, {int64_t(weight.numel())});
  const float* w = weight.const_data_ptr<float>();
  float* b = output.mutable_data_ptr<float>();
  struct Start { int64_t weight, stored; };
  std::vector<Start> starts;
  Start next{0, 0};
  starts.reserve(count);
  for (int64_t k = 0; k < count; k++) {
    const int64_t length = segment[2 * k], mode = segment[2 * k + 1];
    STD_TORCH_CHECK(words || mode != drawn_sign, "stream: needed by a mode");
    starts.push_back(next);
    next.weight += length;
    if (mode == stored_tensor || mode == stored_sign) next.stored += length;
  }
  STD_TORCH_CHECK(next.weight == int64_t(weight.numel()), "segments: expected to add up to the weights");
  STD_TORCH_CHECK(next.stored == 0 || (kept && next.stored <= int64_t(stored->numel())), "stored: needed by a mode");
  const auto fill = [&](int64_t k) {
    const int64_t at = starts[k].weight, count = segment[2 * k], mode = segment[2 * k + 1];
    const float* own = kept + starts[k].stored;
    if (mode == weight_itself) std::copy_n(w + at, count, b + at);
    else if (mode == stored_tensor) std::copy_n(own, count, b + at);
    else if (mode == custom) std::fill_n(b + at, count, 0.0f);
    else {
      bionas::FeedbackWeight a{};
      a.output = b + at;
      a.weight = w + at;
      a.count = count;
      a.bound = float(magnitude[2 * k]);
      a.scale = float(magnitude[2 * k + 1]);
      a.magnitude = mode == constant_sign ? bionas::Magnitude::constant
                    : mode == stored_sign ? bionas::Magnitude::stored : bionas::Magnitude::drawn;
      if (a.magnitude == bionas::Magnitude::stored) a.stored = own;
      if (words) a.stream = {uint64_t(words[2 * k]), uint32_t(words[2 * k + 1])};
      bionas::feedback_weight(a);
    }
  };
  // As many segments at a time as make some work for a thread.
  const int64_t grain = next.weight ? 1 + (1 << 14) * count / next.weight : 1;
  bionas::parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) fill(k);
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def(
      "feedback_segments(Tensor weight, Tensor? stored, Tensor? stream, Tensor segments, Tensor magnitudes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) { m.impl("feedback_segments", TORCH_BOX(&feedback_segments)); }
