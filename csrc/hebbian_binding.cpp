// Hebbian updates as operators of torch; see binding.cpp.

#include "arguments.h"
#include "cpu/hebbian.h"

#include <string>

namespace {

using namespace bionas::arguments;

// The place of a word among those that an argument may be.
template <class Enum>
Enum read(const char* name, const std::string& word, const std::vector<std::string>& words) {
  const auto found = std::find(words.begin(), words.end(), word);
  STD_TORCH_CHECK(found != words.end(), name, ": got ", word);
  return Enum(found - words.begin());
}

std::tuple<Tensor, Tensor> hebbian_activity(
    const Tensor& u,                     // [N, K, P]
    const std::optional<Tensor>& given,  // y of a linear activity, [N, K, P]; u where there is none
    const std::optional<Tensor>& norm,   // what y is divided by, [N, groups, P]
    std::string activity,                // linear, normalised, hard, soft or signed
    std::string decay,                   // none, square, activity or output
    double temperature, int64_t groups) {
  check("u", u);
  STD_TORCH_CHECK(u.dim() == 3 && groups > 0 && u.size(1) % groups == 0, "u: expected [N, K, P], K divided by groups");
  bionas::HebbianActivity a{u.size(0), u.size(1), u.size(2), groups};
  a.activity = read<bionas::Activity>("activity", activity, {"linear", "normalised", "hard", "soft", "signed"});
  a.decay = read<bionas::Decay>("decay", decay, {"none", "square", "activity", "output"});
  a.temperature = float(temperature);
  a.u = u.const_data_ptr<float>();
  a.given = pointer("given", given);
  a.norm = pointer("norm", norm);
  STD_TORCH_CHECK(!a.given || given->numel() == u.numel(), "given: expected the shape of u");
  STD_TORCH_CHECK(!a.norm || int64_t(norm->numel()) == a.n * groups * a.p, "norm: expected [N, groups, P]");
  const bool made = a.activity != bionas::Activity::linear || norm.has_value();
  Tensor y = made ? new_map(u, {a.n, a.k, a.p}) : torch::stable::new_empty(u, {0});
  Tensor total = torch::stable::new_empty(u, {decay == "none" ? 0 : a.k}, ScalarType::Double);
  a.y = made ? y.mutable_data_ptr<float>() : nullptr;
  bionas::hebbian_activity(a, decay == "none" ? nullptr : total.mutable_data_ptr<double>());
  return {y, total};
}

void hebbian_move(
    const Tensor& weight,  // [K, ...]
    const Tensor& delta,   // shaped like weight, the outer product; becomes the update
    const Tensor& total,   // float64 [K], of hebbian_activity; or empty
    const Tensor& rate,    // [K]
    double positions,
    std::string normalisation,  // none, clamp, unit or max
    int64_t groups) {
  check("weight", weight);
  check("delta", delta);
  check("total", total, ScalarType::Double);
  check("rate", rate);
  const int64_t k = weight.size(0);
  STD_TORCH_CHECK(groups > 0 && k % groups == 0, "groups: expected a divisor of ", k);
  STD_TORCH_CHECK(delta.numel() == weight.numel(), "delta: expected the shape of weight");
  STD_TORCH_CHECK(int64_t(rate.numel()) == k, "rate: expected one a filter");
  STD_TORCH_CHECK(!total.numel() || int64_t(total.numel()) == k, "total: expected one a filter, or none");
  bionas::HebbianMove m{k, k ? int64_t(weight.numel()) / k : 0, groups};
  m.normalisation = read<bionas::Normalisation>("normalisation", normalisation, {"none", "clamp", "unit", "max"});
  m.positions = positions;
  m.total = total.numel() ? total.const_data_ptr<double>() : nullptr;
  m.rate = rate.const_data_ptr<float>();
  m.delta = delta.mutable_data_ptr<float>();
  m.weight = weight.mutable_data_ptr<float>();
  bionas::hebbian_move(m);
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
