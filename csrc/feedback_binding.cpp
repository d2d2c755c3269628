// Feedback weights as operators of torch; see library.cpp.

#include "arguments.h"
#include "cpu/dispatch.h"
#include "cpu/feedback.h"
#include "names.h"

namespace {

using namespace bionas::arguments;
using bionas::Mode;

constexpr int64_t max_elements = int64_t{1} << 32;

Tensor checked(const char* name, const Tensor& tensor, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected ", torch::headeronly::toString(dtype));
  return torch::stable::contiguous(tensor);
}

bionas::Stream read_stream(
    const Tensor& stream) {  // int64 [2], seed and index of the draw
  const Tensor pair = checked("stream", stream, ScalarType::Long);
  STD_TORCH_CHECK(pair.numel() == 2, "stream: expected 2 numbers");
  const int64_t* words = pair.const_data_ptr<int64_t>();
  return {static_cast<uint64_t>(words[0]), static_cast<uint32_t>(words[1])};
}

Tensor feedback_weight(
    const Tensor& weight,                 // W, float32 [C_out, C_in/groups, *kernel] or any other shape
    std::string mode,                     // sign, stored_sign or drawn_sign
    const std::optional<Tensor>& stored,  // |M| of mode stored_sign, shaped like weight
    const std::optional<Tensor>& stream,  // of mode drawn_sign, int64 [2]
    double bound,                         // of |M| in mode drawn_sign
    double scale) {                       // |M| of mode sign
  const Tensor w = checked("weight", weight, ScalarType::Float);
  STD_TORCH_CHECK(w.numel() < max_elements, "weight: expected less than 2**32 elements");
  Tensor output = torch::stable::empty_like(w);
  bionas::FeedbackWeight b{};
  b.output = output.mutable_data_ptr<float>();
  b.weight = w.const_data_ptr<float>();
  b.count = w.numel();
  b.mode = read<Mode>("mode", mode, bionas::Mode_words);
  b.bound = static_cast<float>(bound);
  b.scale = static_cast<float>(scale);
  Tensor m;
  if (b.mode == Mode::stored_sign) {
    STD_TORCH_CHECK(stored.has_value(), "mode stored_sign needs a stored tensor");
    m = checked("stored", *stored, ScalarType::Float);
    STD_TORCH_CHECK(m.numel() == w.numel(), "stored: expected the shape of weight");
    b.stored = m.const_data_ptr<float>();
  } else if (b.mode == Mode::drawn_sign) {
    STD_TORCH_CHECK(stream.has_value(), "mode drawn_sign needs a stream");
    b.stream = read_stream(*stream);
  } else {
    STD_TORCH_CHECK(b.mode == Mode::sign, "mode: expected sign, stored_sign or drawn_sign, got ", mode);
  }
  bionas::feedback_weight(b);
  return output;
}

// B of several layers.
Tensors feedback_weights(
    Tensors weights, std::vector<std::string> modes, OptionalTensors stored, OptionalTensors streams,
    std::vector<double> bounds, std::vector<double> scales) {
  const std::size_t count = weights.size();
  STD_TORCH_CHECK(modes.size() == count && stored.size() == count && streams.size() == count &&
                      bounds.size() == count && scales.size() == count,
                  "weights: expected a mode, a stored tensor, a stream, a bound and a scale of each");
  Tensors out;
  for (std::size_t k = 0; k < count; k++)
    out.push_back(feedback_weight(weights[k], modes[k], stored[k], streams[k], bounds[k], scales[k]));
  return out;
}

// B of many layers with concatenated weights; 0 where the mode is custom.
Tensor feedback_segments(
    const Tensor& weight,                 // flat
    const std::optional<Tensor>& stored,  // flat, of the segments whose mode reads it, concatenated
    const std::optional<Tensor>& stream,  // int64 [segments, 2]
    const Tensor& segments,               // int64 [segments, 2], length and mode
    const Tensor& magnitudes) {           // float64 [segments, 2], bound and scale
  check("weight", weight);
  check("segments", segments, ScalarType::Long);
  check("magnitudes", magnitudes, ScalarType::Double);
  const int64_t count = segments.numel() / 2;
  STD_TORCH_CHECK(int64_t(segments.numel()) == 2 * count, "segments: expected a length and a mode of each");
  STD_TORCH_CHECK(int64_t(magnitudes.numel()) == 2 * count, "magnitudes: expected as many as segments");
  const int64_t* segment = segments.const_data_ptr<int64_t>();
  const double* magnitude = magnitudes.const_data_ptr<double>();
  const float* read = pointer("stored", stored);
  if (stream.has_value()) {
    check("stream", *stream, ScalarType::Long);
    STD_TORCH_CHECK(int64_t(stream->numel()) == 2 * count, "stream: expected a seed and a draw of each segment");
  }
  const int64_t* words = stream.has_value() ? stream->const_data_ptr<int64_t>() : nullptr;
  Tensor output = new_map(weight, {int64_t(weight.numel())});
  const float* w = weight.const_data_ptr<float>();
  float* b = output.mutable_data_ptr<float>();
  struct Start { int64_t weight, stored; };
  std::vector<Start> starts;
  Start next{0, 0};
  starts.reserve(count);
  for (int64_t k = 0; k < count; k++) {
    const int64_t length = segment[2 * k], code = segment[2 * k + 1];
    STD_TORCH_CHECK(code >= 0 && code <= int64_t(Mode::custom) && Mode(code) != Mode::direct, "segments: got mode ", code);
    const Mode mode = Mode(code);
    STD_TORCH_CHECK(words || mode != Mode::drawn_sign, "stream: needed by a mode");
    check_range("segments", length, 0, int64_t(weight.numel()) - next.weight);
    starts.push_back(next);
    next.weight += length;
    if (mode == Mode::stored || mode == Mode::stored_sign) next.stored += length;
  }
  STD_TORCH_CHECK(next.weight == int64_t(weight.numel()), "segments: expected to add up to the weights");
  STD_TORCH_CHECK(next.stored == 0 || (read && next.stored <= int64_t(stored->numel())), "stored: needed by a mode");
  const auto fill = [&](int64_t k) {
    const int64_t at = starts[k].weight, count = segment[2 * k];
    const Mode mode = Mode(segment[2 * k + 1]);
    const float* own = read + starts[k].stored;
    if (mode == Mode::weight) std::copy_n(w + at, count, b + at);
    else if (mode == Mode::stored) std::copy_n(own, count, b + at);
    else if (mode == Mode::custom) std::fill_n(b + at, count, 0.0f);
    else {
      bionas::FeedbackWeight a{};
      a.output = b + at;
      a.weight = w + at;
      a.count = count;
      a.mode = mode;
      a.bound = float(magnitude[2 * k]);
      a.scale = float(magnitude[2 * k + 1]);
      if (mode == Mode::stored_sign) a.stored = own;
      if (words) a.stream = {uint64_t(words[2 * k]), uint32_t(words[2 * k + 1])};
      bionas::feedback_weight(a);
    }
  };
  // Enough segments at a time to occupy a thread.
  const int64_t grain = next.weight ? 1 + (1 << 14) * count / next.weight : 1;
  bionas::parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) fill(k);
  });
  return output;
}

Tensor uniform(
    std::vector<int64_t> shape,
    const Tensor& stream) {  // int64 [2]
  const bionas::Stream words = read_stream(stream);
  int64_t elements = 1;
  for (int64_t size : shape) {
    check_range("shape", size, 0, max_elements);
    STD_TORCH_CHECK(size == 0 || elements < max_elements / size, "shape: expected less than 2**32 elements");
    elements *= size;
  }
  Tensor output = torch::stable::new_empty(stream, shape, ScalarType::Float);
  bionas::uniform(output.mutable_data_ptr<float>(), output.numel(), words);
  return output;
}

std::vector<std::string> feedback_modes() { return split(bionas::Mode_words); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def("feedback_weight(Tensor weight, str mode, Tensor? stored, Tensor? stream, float bound, float scale) -> Tensor");
  m.def(
      "feedback_weights(Tensor[] weights, str[] modes, Tensor?[] stored, Tensor?[] streams, float[] bounds, "
      "float[] scales) -> Tensor[]");
  m.def(
      "feedback_segments(Tensor weight, Tensor? stored, Tensor? stream, Tensor segments, Tensor magnitudes) -> Tensor");
  m.def("uniform(int[] shape, Tensor stream) -> Tensor");
  m.def("feedback_modes() -> str[]");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("feedback_weight", TORCH_BOX(&feedback_weight));
  m.impl("feedback_weights", TORCH_BOX(&feedback_weights));
  m.impl("feedback_segments", TORCH_BOX(&feedback_segments));
  m.impl("uniform", TORCH_BOX(&uniform));
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CompositeExplicitAutograd, m) {
  m.impl("feedback_modes", TORCH_BOX(&feedback_modes));
}
