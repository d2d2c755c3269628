// Hebbian updates as operators of torch; see library.cpp.

#include "cpu/weight_gradient.h"
#include "hebbian_arguments.h"

namespace {

using namespace bionas::arguments;

std::tuple<Tensor, Tensor> hebbian_activity(
    const Tensor& u, const std::optional<Tensor>& external, const std::optional<Tensor>& norm, std::string activity,
    std::string decay, double temperature, int64_t groups) {
  bionas::HebbianActivity a = read_activity(u, external, norm, activity, decay, temperature, groups);
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

Tensor weight_gradient(const Tensor& gradient, const Tensor& x, std::vector<int64_t> padding) {
  check("gradient", gradient);
  check("x", x);
  STD_TORCH_CHECK(padding.size() == 2, "padding: expected two numbers");
  STD_TORCH_CHECK(gradient.dim() == 4 && x.dim() == 4 && gradient.size(0) == x.size(0), "x: expected [N, C, H, W]");
  check_each("padding", padding, 0, 2 + std::max(gradient.size(2), gradient.size(3)));
  for (int64_t i : {0, 1})
    STD_TORCH_CHECK(x.size(2 + i) + 2 * padding[i] == gradient.size(2 + i) + 2, "gradient: expected that of a 3x3 kernel");
  const int64_t k = gradient.size(1), c = x.size(1);
  STD_TORCH_CHECK(c <= max_channels && k <= max_channels / std::max<int64_t>(1, c),
                  "gradient, x: expected at most 2**24 pairs of channels");
  Tensor output = new_map(x, {k, c, 3, 3});
  bionas::weight_gradient(
      {x.size(0), k, c, gradient.size(2), gradient.size(3), x.size(2), x.size(3), padding[0], padding[1],
       gradient.const_data_ptr<float>(), x.const_data_ptr<float>(), output.mutable_data_ptr<float>()});
  return output;
}

std::vector<std::string> activities() { return split(bionas::Activity_words); }
std::vector<std::string> decays() { return split(bionas::Decay_words); }
std::vector<std::string> normalisations() { return split(bionas::Normalisation_words); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def(
      "hebbian_activity(Tensor u, Tensor? external, Tensor? norm, str activity, str decay, float temperature, int groups) "
      "-> (Tensor, Tensor)");
  m.def(
      "hebbian_move(Tensor(a!) weight, Tensor(b!) delta, Tensor total, Tensor rate, float positions, "
      "str normalisation, int groups) -> ()");
  m.def("weight_gradient(Tensor gradient, Tensor x, int[] padding) -> Tensor");
  m.def("hebbian_activities() -> str[]");
  m.def("hebbian_decays() -> str[]");
  m.def("hebbian_normalisations() -> str[]");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("hebbian_activity", TORCH_BOX(&hebbian_activity));
  m.impl("hebbian_move", TORCH_BOX(&hebbian_move));
  m.impl("weight_gradient", TORCH_BOX(&weight_gradient));
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CompositeExplicitAutograd, m) {
  m.impl("hebbian_activities", TORCH_BOX(&activities));
  m.impl("hebbian_decays", TORCH_BOX(&decays));
  m.impl("hebbian_normalisations", TORCH_BOX(&normalisations));
}
