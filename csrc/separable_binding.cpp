// The separable stage, segments of feedback and the pools as operators of torch; see binding.cpp. Activations are
// [N, H, W, C] with C a multiple of 16; weights may have fewer channels and are padded with zeros here.

#include "arguments.h"
#include "cpu/dispatch.h"
#include "cpu/feedback.h"
#include "cpu/pools.h"

namespace {

using namespace bionas::arguments;

bionas::Stage make_stage(
    const Tensor& x,  // [N, H, W, C] or [K, N, H, W, C]
    const Ints& kernels, int64_t stride, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift) {
  check("x", x);
  STD_TORCH_CHECK(x.dim() == 4 || x.dim() == 5, "x: expected 4 or 5 dimensions");
  STD_TORCH_CHECK(stride == 1 || (stride == 2 && x.dim() == 4), "stride: expected 1, or 2 for a shared input");
  const int64_t first = x.dim() - 4;
  STD_TORCH_CHECK(first == 0 || x.size(0) == int64_t(kernels.size()), "x: expected an input for each branch");
  bionas::Stage s{};
  s.n = x.size(first);
  s.h = x.size(first + 1);
  s.w = x.size(first + 2);
  s.c = x.size(first + 3);
  STD_TORCH_CHECK(s.c % 16 == 0, "x: expected a multiple of 16 channels");
  s.stride = int(stride);
  s.ho = (s.h + stride - 1) / stride;
  s.wo = (s.w + stride - 1) / stride;
  s.branches = int(kernels.size());
  s.x = x.const_data_ptr<float>();
  s.shared = first == 0;
  s.scale = pointer("scale", scale);
  s.shift = pointer("shift", shift);
  return s;
}

std::tuple<Tensor, Tensor, Tensor> stage_forward(
    const Tensor& x, const Tensor& depthwise, const Tensor& pointwise, Ints kernels, Ints dilations, int64_t stride,
    const std::optional<Tensor>& scale,  // [K, C]
    const std::optional<Tensor>& shift) {
  bionas::Stage s = make_stage(x, kernels, stride, scale, shift);
  const Weights weights(depthwise, pointwise, kernels, s.c);
  std::vector<bionas::Branch> branches(s.branches);
  for (int k = 0; k < s.branches; k++) {
    branches[k].kernel = int(kernels[k]);
    branches[k].dilation = int(dilations[k]);
    branches[k].depthwise = weights.depthwise(k);
    branches[k].pointwise = weights.pointwise(k);
  }
  s.branch = branches.data();
  Tensor z = new_map(x, {s.branches, s.n, s.ho, s.wo, s.c});
  Tensor sum = torch::stable::new_empty(x, {s.branches, s.c}, ScalarType::Double);
  Tensor sum_sq = torch::stable::new_empty(x, {s.branches, s.c}, ScalarType::Double);
  bionas::stage_forward(
      s, {z.mutable_data_ptr<float>(), sum.mutable_data_ptr<double>(), sum_sq.mutable_data_ptr<double>()});
  return {z, sum, sum_sq};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stage_backward(
    std::vector<Tensor> grads,  // stacks [K_i, N, H_out, W_out, C]
    Ints grad_index,            // for each branch, counted through the stacks
    const Tensor& z,            // [K, N, H_out, W_out, C]
    const Tensor& a, const Tensor& b, const Tensor& d,  // [K, C]
    const Tensor& x, const Tensor& depthwise, const Tensor& pointwise, const Tensor& depthwise_feedback,
    const Tensor& pointwise_feedback, Ints kernels, Ints dilations, int64_t stride, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, bool weights_wanted) {
  bionas::Stage s = make_stage(x, kernels, stride, scale, shift);
  const Weights weights(depthwise, pointwise, kernels, s.c);
  const Weights feedback(depthwise_feedback, pointwise_feedback, kernels, s.c);
  check("z", z);
  const std::vector<const float*> incoming = each_map("grads", grads, s.n * s.ho * s.wo * s.c);
  check("a", a);
  check("b", b);
  check("d", d);
  const int64_t c = s.c;
  WeightGrads weight_grads(weights, kernels, c);
  Tensor depthwise_grad = torch::stable::new_empty(x, {weights_wanted ? weight_grads.depthwise_size() : 0});
  Tensor pointwise_grad = torch::stable::new_empty(x, {weights_wanted ? s.branches : 0, weights.own(), weights.own()});
  std::vector<bionas::Branch> branches(s.branches);
  for (int64_t k = 0; k < s.branches; k++) {
    const int64_t i = grad_index[k];
    STD_TORCH_CHECK(i >= 0 && i < int64_t(incoming.size()), "grad_index: out of range");
    branches[k].grad = incoming[i];
    branches[k].kernel = int(kernels[k]);
    branches[k].dilation = int(dilations[k]);
    branches[k].depthwise = weights.depthwise(k);
    branches[k].pointwise = weights.pointwise(k);
    branches[k].depthwise_feedback = feedback.depthwise(k);
    branches[k].pointwise_feedback = feedback.pointwise(k);
  }
  if (weights_wanted)
    weight_grads.give(branches, depthwise_grad.mutable_data_ptr<float>(), pointwise_grad.mutable_data_ptr<float>());
  s.branch = branches.data();
  Tensor grad_x = s.shared ? new_map(x, {s.n, s.h, s.w, s.c}) : new_map(x, {s.branches, s.n, s.h, s.w, s.c});
  const int64_t rows = s.shared ? 0 : s.branches;
  Tensor sum = torch::stable::new_empty(x, {rows, c}, ScalarType::Double);
  Tensor product = torch::stable::new_empty(x, {rows, c}, ScalarType::Double);
  bionas::stage_backward(
      s, {z.const_data_ptr<float>(), a.const_data_ptr<float>(), b.const_data_ptr<float>(), d.const_data_ptr<float>(),
          grad_x.mutable_data_ptr<float>(), rows ? sum.mutable_data_ptr<double>() : nullptr,
          rows ? product.mutable_data_ptr<double>() : nullptr});
  if (weights_wanted) weight_grads.finish();
  return {grad_x, sum, product, depthwise_grad, pointwise_grad};
}

bionas::Pools make_pools(const Tensor& x, int64_t stride) {
  check("x", x);
  STD_TORCH_CHECK(x.dim() == 4 && x.size(3) % 16 == 0, "x: expected [N, H, W, C] with a multiple of 16 channels");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2");
  bionas::Pools p{};
  p.n = x.size(0);
  p.h = x.size(1);
  p.w = x.size(2);
  p.c = x.size(3);
  p.stride = int(stride);
  p.ho = (p.h + stride - 1) / stride;
  p.wo = (p.w + stride - 1) / stride;
  p.x = x.const_data_ptr<float>();
  return p;
}

std::tuple<Tensor, Tensor, Tensor> pools(const Tensor& x, int64_t stride) {
  const bionas::Pools p = make_pools(x, stride);
  Tensor z = new_map(x, {2, p.n, p.ho, p.wo, p.c});
  Tensor sum = torch::stable::new_empty(x, {2, p.c}, ScalarType::Double);
  Tensor sum_sq = torch::stable::new_empty(x, {2, p.c}, ScalarType::Double);
  bionas::pools_forward(
      p, z.mutable_data_ptr<float>(), sum.mutable_data_ptr<double>(), sum_sq.mutable_data_ptr<double>());
  return {z, sum, sum_sq};
}

Tensor pools_backward(std::vector<Tensor> grads, const Tensor& x, int64_t stride) {
  const bionas::Pools p = make_pools(x, stride);
  STD_TORCH_CHECK(grads.size() == 2, "grads: expected two");
  for (const Tensor& grad : grads) {
    check("grads", grad);
    STD_TORCH_CHECK(int64_t(grad.numel()) == p.n * p.ho * p.wo * p.c, "grads: expected [N, H_out, W_out, C]");
  }
  Tensor out = new_map(x, {p.n, p.h, p.w, p.c});
  bionas::pools_backward(
      p, grads[0].const_data_ptr<float>(), grads[1].const_data_ptr<float>(), out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def(
      "stage_forward(Tensor x, Tensor depthwise, Tensor pointwise, int[] kernels, int[] dilations, int stride, "
      "Tensor? scale, Tensor? shift) -> (Tensor, Tensor, Tensor)");
  m.def(
      "stage_backward(Tensor[] grads, int[] grad_index, Tensor z, Tensor a, Tensor b, Tensor d, "
      "Tensor x, Tensor depthwise, Tensor pointwise, Tensor depthwise_feedback, Tensor pointwise_feedback, "
      "int[] kernels, int[] dilations, int stride, Tensor? scale, Tensor? shift, bool weights) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("pools(Tensor x, int stride) -> (Tensor, Tensor, Tensor)");
  m.def("pools_backward(Tensor[] grads, Tensor x, int stride) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("stage_forward", TORCH_BOX(&stage_forward));
  m.impl("stage_backward", TORCH_BOX(&stage_backward));
  m.impl("pools", TORCH_BOX(&pools));
  m.impl("pools_backward", TORCH_BOX(&pools_backward));
}
