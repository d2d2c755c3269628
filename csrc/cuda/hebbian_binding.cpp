// Hebbian updates on a GPU, in a separate library. Loading it needs torch with CUDA, but no GPU, and the CPU library,
// which defines the operators, loaded before.

#include "hebbian.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../error_code.h"
#include "../hebbian_arguments.h"

// As in library.cpp.
extern "C" __attribute__((used, visibility("default"))) const char bionas_fast_cuda_source[] = BIONAS_SOURCE;

namespace {

using namespace bionas::arguments;

bionas::cuda::Stream current_stream(const Tensor& on) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  return stream;
}

std::tuple<Tensor, Tensor> hebbian_activity(
    const Tensor& u, const std::optional<Tensor>& external, const std::optional<Tensor>& norm, std::string activity,
    std::string decay, double temperature, int64_t groups) {
  bionas::HebbianActivity a = read_activity(u, external, norm, activity, decay, temperature, groups);
  const torch::stable::accelerator::DeviceGuard guard(u.get_device_index());
  const bool decays = decay != "none";
  Tensor y = torch::stable::new_empty(u, made(a, norm));
  Tensor total = torch::stable::new_empty(u, {decays ? a.k : 0}, ScalarType::Double);
  // Released before use: only later kernels in the stream can reuse the memory.
  Tensor partial =
      torch::stable::new_empty(u, {decays ? bionas::cuda::activity_workspace(a) : 0}, ScalarType::Double);
  a.y = y.numel() ? y.mutable_data_ptr<float>() : nullptr;
  bionas::cuda::hebbian_activity(
      a, decays ? total.mutable_data_ptr<double>() : nullptr, partial.mutable_data_ptr<double>(), current_stream(u));
  return {y, total};
}

void hebbian_move(
    const Tensor& weight, const Tensor& delta, const Tensor& total, const Tensor& rate, double positions,
    std::string normalisation, int64_t groups) {
  const bionas::HebbianMove m = read_move(weight, delta, total, rate, positions, normalisation, groups);
  const torch::stable::accelerator::DeviceGuard guard(weight.get_device_index());
  Tensor largest = torch::stable::new_empty(weight, {m.normalisation == bionas::Normalisation::max ? m.k : 0});
  bionas::cuda::hebbian_move(m, largest.mutable_data_ptr<float>(), current_stream(weight));
}

std::string cuda_obstacle() { return bionas::cuda::obstacle(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) { m.def("cuda_obstacle() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CompositeExplicitAutograd, m) {
  m.impl("cuda_obstacle", TORCH_BOX(&cuda_obstacle));
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CUDA, m) {
  m.impl("hebbian_activity", TORCH_BOX(&hebbian_activity));
  m.impl("hebbian_move", TORCH_BOX(&hebbian_move));
}
