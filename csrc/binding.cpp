// The kernels as operators of torch, namespace bionas_fast_native. Only the stable ABI is used, so that one binary
// serves every later torch; and no Python at all: torch.ops.load_library takes it under every Python.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/feedback.h"
#include "cpu/memory_pool.h"

// What this was compiled from; bionas_fast/native/build.py looks for it in the file.
extern "C" __attribute__((used, visibility("default"))) const char bionas_fast_source[] = BIONAS_SOURCE;

namespace bionas {

void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
}

}  // namespace bionas

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t max_elements = int64_t{1} << 32;

Tensor checked(const char* name, const Tensor& tensor, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected ", torch::headeronly::toString(dtype));
  return torch::stable::contiguous(tensor);
}

bionas::Stream read(
    const Tensor& stream  // int64 [2], seed and number of the draw
) {
  const Tensor pair = checked("stream", stream, ScalarType::Long);
  STD_TORCH_CHECK(pair.numel() == 2, "stream: expected 2 numbers");
  const int64_t* words = pair.const_data_ptr<int64_t>();
  return {static_cast<uint64_t>(words[0]), static_cast<uint32_t>(words[1])};
}

Tensor feedback_weight(
    const Tensor& weight,                 // W, float32 [C_out, C_in/groups, *kernel] or any other shape
    const std::optional<Tensor>& stored,  // |M| of mode stored_sign, shaped like weight
    const std::optional<Tensor>& stream,  // of mode drawn_sign, int64 [2]
    std::string mode,                     // sign, stored_sign or drawn_sign
    double bound,                         // of |M| in mode drawn_sign
    double scale                          // |M| of mode sign
) {
  const Tensor w = checked("weight", weight, ScalarType::Float);
  STD_TORCH_CHECK(w.numel() < max_elements, "weight: expected less than 2**32 elements");
  Tensor output = torch::stable::empty_like(w);
  bionas::FeedbackWeight arguments{};
  arguments.output = output.mutable_data_ptr<float>();
  arguments.weight = w.const_data_ptr<float>();
  arguments.count = w.numel();
  arguments.bound = static_cast<float>(bound);
  arguments.scale = static_cast<float>(scale);
  Tensor m;
  if (mode == "sign") {
    arguments.magnitude = bionas::Magnitude::constant;
  } else if (mode == "stored_sign") {
    STD_TORCH_CHECK(stored.has_value(), "mode stored_sign needs a stored tensor");
    m = checked("stored", *stored, ScalarType::Float);
    STD_TORCH_CHECK(m.numel() == w.numel(), "stored: expected the shape of weight");
    arguments.magnitude = bionas::Magnitude::stored;
    arguments.stored = m.const_data_ptr<float>();
  } else if (mode == "drawn_sign") {
    STD_TORCH_CHECK(stream.has_value(), "mode drawn_sign needs a stream");
    arguments.magnitude = bionas::Magnitude::drawn;
    arguments.stream = read(*stream);
  } else {
    STD_TORCH_CHECK(false, "mode: expected sign, stored_sign or drawn_sign, got ", mode);
  }
  bionas::feedback_weight(arguments);
  return output;
}

Tensor uniform(
    std::vector<int64_t> shape,
    const Tensor& stream  // int64 [2]
) {
  Tensor output = torch::stable::new_empty(stream, shape, ScalarType::Float);
  STD_TORCH_CHECK(output.numel() < max_elements, "shape: expected less than 2**32 elements");
  bionas::uniform(output.mutable_data_ptr<float>(), output.numel(), read(stream));
  return output;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (bionas::Isa isa : bionas::all_isas)
    if (bionas::supported(isa)) names.push_back(bionas::name(isa));
  return names;
}

std::string current_isa() { return bionas::name(bionas::current_isa()); }

void set_isa(std::string name) {
  for (bionas::Isa isa : bionas::all_isas)
    if (name == bionas::name(isa) && bionas::supported(isa)) return bionas::set_isa(isa);
  STD_TORCH_CHECK(false, "instruction set ", name, " cannot run here");
}

int64_t release_memory() { return int64_t(bionas::release()); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def("feedback_weight(Tensor weight, Tensor? stored, Tensor? stream, str mode, float bound, float scale) -> Tensor");
  m.def("uniform(int[] shape, Tensor stream) -> Tensor");
  m.def("isas() -> str[]");
  m.def("isa() -> str");
  m.def("set_isa(str name) -> ()");
  m.def("release_memory() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("feedback_weight", TORCH_BOX(&feedback_weight));
  m.impl("uniform", TORCH_BOX(&uniform));
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CompositeExplicitAutograd, m) {
  m.impl("isas", TORCH_BOX(&isas));
  m.impl("isa", TORCH_BOX(&current_isa));
  m.impl("set_isa", TORCH_BOX(&set_isa));
  m.impl("release_memory", TORCH_BOX(&release_memory));
}
