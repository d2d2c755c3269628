// The arguments of the operators of Hebbian updates, on every device.

#pragma once

#include <string>

#include "arguments.h"
#include "cpu/hebbian.h"
#include "names.h"

namespace bionas::arguments {

// The arguments without the results.
inline HebbianActivity read_activity(
    const Tensor& u,                     // [N, K, P]
    const std::optional<Tensor>& external,  // y of the caller, for a linear activity, [N, K, P]; u where there is none
    const std::optional<Tensor>& norm,   // divisor of y, [N, groups, P]
    const std::string& activity,         // linear, normalised, hard, soft or competing
    const std::string& decay,            // none, square, activity or output
    double temperature, int64_t groups) {
  check("u", u, ScalarType::Float, u.device());
  STD_TORCH_CHECK(u.dim() == 3 && groups > 0 && u.size(1) % groups == 0, "u: expected [N, K, P], K divided by groups");
  check_range("groups", groups, 1, std::max<int64_t>(1, u.size(1)));
  check_range("channels", u.size(1), 0, max_channels);
  HebbianActivity a{u.size(0), u.size(1), u.size(2), groups};
  a.activity = read<Activity>("activity", activity, Activity_words);
  a.decay = read<Decay>("decay", decay, Decay_words);
  STD_TORCH_CHECK(a.decay != Decay::lower, "decay: got lower");
  a.temperature = float(temperature);
  a.u = u.const_data_ptr<float>();
  a.external = pointer("external", external, u.device());
  a.norm = pointer("norm", norm, u.device());
  STD_TORCH_CHECK(!a.external || external->numel() == u.numel(), "external: expected the shape of u");
  STD_TORCH_CHECK(!a.norm || int64_t(norm->numel()) == a.n * groups * a.p, "norm: expected [N, groups, P]");
  return a;
}

// The shape of y; none where u serves as y.
inline std::vector<int64_t> made(const HebbianActivity& a, const std::optional<Tensor>& norm) {
  if (a.activity == Activity::linear && !norm.has_value()) return {0};
  return {a.n, a.k, a.p};
}

inline HebbianMove read_move(
    const Tensor& weight,  // [K, ...]
    const Tensor& delta,   // shaped like weight, the outer product; becomes the update
    const Tensor& total,   // float64 [K], of hebbian_activity; or empty
    const Tensor& rate,    // [K]
    double positions,
    const std::string& normalisation,  // none, clamp, unit or max
    int64_t groups) {
  check("weight", weight, ScalarType::Float, weight.device());
  check("delta", delta, ScalarType::Float, weight.device());
  check("total", total, ScalarType::Double, weight.device());
  check("rate", rate, ScalarType::Float, weight.device());
  STD_TORCH_CHECK(weight.dim() > 0, "weight: expected [K, ...]");
  const int64_t k = weight.size(0);
  check_range("filters", k, 0, max_channels);
  check_range("groups", groups, 1, std::max<int64_t>(1, k));
  STD_TORCH_CHECK(k % groups == 0, "groups: expected a divisor of ", k);
  STD_TORCH_CHECK(delta.numel() == weight.numel(), "delta: expected the shape of weight");
  STD_TORCH_CHECK(int64_t(rate.numel()) == k, "rate: expected one a filter");
  STD_TORCH_CHECK(!total.numel() || int64_t(total.numel()) == k, "total: expected one a filter, or none");
  HebbianMove m{k, k ? int64_t(weight.numel()) / k : 0, groups};
  m.normalisation = read<Normalisation>("normalisation", normalisation, Normalisation_words);
  m.positions = positions;
  m.total = total.numel() ? total.const_data_ptr<double>() : nullptr;
  m.rate = rate.const_data_ptr<float>();
  m.delta = delta.mutable_data_ptr<float>();
  m.weight = weight.mutable_data_ptr<float>();
  return m;
}

}  // namespace bionas::arguments
