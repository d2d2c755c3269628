// Hebbian updates as operators of torch; see binding.cpp.

#include "hebbian_arguments.h"

namespace {

using namespace bionas::arguments;

std::tuple<Tensor, Tensor> hebbian_activity(
    const Tensor& u, const std::optional<Tensor>& given, const std::optional<Tensor>& norm, std::string activity,
    std::string decay, double temperature, int64_t groups) {
  bionas::HebbianActivity a = read_activity(u, given, norm, activity, decay, temperature, groups);
  Tensor y = new_map(u, made(a, norm));
  Tensor total = torch::stable::new_empty(u, {decay == "none" ? 0 : a.k}, ScalarType::Double);
  a.y = y.numel() ? y.mutable_data_ptr<float>() : nullptr;
  bionas::hebbian_activity(a, decay == "none" ? nullptr : total.mutable_data_ptr<double>());
  return {y, total};
}

void hebbian_move(
    const Tensor& weight, const Tensor& delta, const Tensor& total, const Tensor& rate, double positions,
    std::string normalisation, int64_t groups) {
  bionas::hebbian_move(read_move(weight, delta, total, rate, positions, normalisation, groups));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def(
      "hebbian_activity(Tensor u, Tensor? given, Tensor? norm, str activity, str decay, float temperature, int groups) "
      "-> (Tensor, Tensor)");
  m.def(
      "hebbian_move(Tensor(a!) weight, Tensor(b!) delta, Tensor total, Tensor rate, float positions, "
      "str normalisation, int groups) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("hebbian_activity", TORCH_BOX(&hebbian_activity));
  m.impl("hebbian_move", TORCH_BOX(&hebbian_move));
}
