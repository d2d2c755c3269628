// Factorized reductions as operators of torch; see binding.cpp. Activations are [N, H, W, C] with C a multiple of 16;
// weights may have fewer channels.

#include "arguments.h"
#include "cpu/reductions.h"

namespace {

using namespace bionas::arguments;

bionas::Reductions make_reductions(const Tensor& x, const Tensor& first, const Tensor& second) {
  check("x", x);
  STD_TORCH_CHECK(x.dim() == 4 && x.size(3) % 16 == 0, "x: expected [N, H, W, C] with a multiple of 16 channels");
  bionas::Reductions s{};
  s.n = x.size(0);
  s.h = x.size(1);
  s.w = x.size(2);
  s.c = x.size(3);
  s.ho = (s.h + 1) / 2;
  s.wo = (s.w + 1) / 2;
  s.x = x.const_data_ptr<float>();
  for (const Tensor* weight : {&first, &second}) {
    check("first, second", *weight);
    STD_TORCH_CHECK(weight->dim() == 3, "first, second: expected a matrix for each reduction");
  }
  s.count = first.size(0);
  s.own = first.size(2);
  STD_TORCH_CHECK(first.size(1) == s.own - s.own / 2 && second.size(0) == s.count && second.size(1) == s.own / 2 &&
                      second.size(2) == s.own && s.own <= s.c,
                  "first, second: expected the two halves of square matrices with at most as many channels as x");
  s.first = first.const_data_ptr<float>();
  s.second = second.const_data_ptr<float>();
  return s;
}

std::tuple<Tensor, Tensor, Tensor> factorized_reduce(const Tensor& x, const Tensor& first, const Tensor& second) {
  const bionas::Reductions s = make_reductions(x, first, second);
  Tensor z = new_map(x, {s.count, s.n, s.ho, s.wo, s.c});
  Tensor sum = torch::stable::new_empty(x, {s.count, s.c}, ScalarType::Double);
  Tensor sum_sq = torch::stable::new_empty(x, {s.count, s.c}, ScalarType::Double);
  bionas::reductions_forward(
      s, z.mutable_data_ptr<float>(), sum.mutable_data_ptr<double>(), sum_sq.mutable_data_ptr<double>());
  return {z, sum, sum_sq};
}

std::tuple<Tensor, Tensor, Tensor> factorized_reduce_backward(
    std::vector<Tensor> grads,                          // of the edges, [N, H_out, W_out, C]
    Ints edges,                                         // for each reduction the gradient that it reads
    const Tensor& z,                                    // [R, N, H_out, W_out, C]
    const Tensor& a, const Tensor& b, const Tensor& d,  // [R, C]
    const Tensor& x, const Tensor& first, const Tensor& second, const Tensor& first_feedback,
    const Tensor& second_feedback, bool weights_wanted) {
  make_reductions(x, first, second);
  const bionas::Reductions s = make_reductions(x, first_feedback, second_feedback);
  STD_TORCH_CHECK(first.size(0) == s.count && first.size(2) == s.own, "feedback: expected the shapes of the weights");
  STD_TORCH_CHECK(int64_t(edges.size()) == s.count, "edges: expected one for each reduction");
  const int64_t size = s.n * s.ho * s.wo * s.c;
  check("z", z);
  STD_TORCH_CHECK(int64_t(z.numel()) == s.count * size, "z: expected [R, N, H_out, W_out, C]");
  for (const Tensor* row : {&a, &b, &d}) {
    check("a, b, d", *row);
    STD_TORCH_CHECK(int64_t(row->numel()) == s.count * s.c, "a, b, d: expected a row for each reduction");
  }
  for (const Tensor& grad : grads) {
    check("grads", grad);
    STD_TORCH_CHECK(int64_t(grad.numel()) == size, "grads: expected [N, H_out, W_out, C]");
  }
  std::vector<const float*> each;
  for (int64_t e : edges) {
    STD_TORCH_CHECK(e >= 0 && e < int64_t(grads.size()), "edges: out of range");
    each.push_back(grads[e].const_data_ptr<float>());
  }
  Tensor grad_x = new_map(x, {s.n, s.h, s.w, s.c});
  Tensor grad_first = weights_wanted ? torch::stable::empty_like(first) : torch::stable::new_empty(x, {0});
  Tensor grad_second = weights_wanted ? torch::stable::empty_like(second) : torch::stable::new_empty(x, {0});
  bionas::reductions_backward(
      s, {each.data(), z.const_data_ptr<float>(), a.const_data_ptr<float>(), b.const_data_ptr<float>(),
          d.const_data_ptr<float>(), grad_x.mutable_data_ptr<float>(),
          weights_wanted ? grad_first.mutable_data_ptr<float>() : nullptr,
          weights_wanted ? grad_second.mutable_data_ptr<float>() : nullptr});
  return {grad_x, grad_first, grad_second};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def("factorized_reduce(Tensor x, Tensor first, Tensor second) -> (Tensor, Tensor, Tensor)");
  m.def(
      "factorized_reduce_backward(Tensor[] grads, int[] edges, Tensor z, Tensor a, Tensor b, Tensor d, Tensor x, "
      "Tensor first, Tensor second, Tensor first_feedback, Tensor second_feedback, bool weights) "
      "-> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("factorized_reduce", TORCH_BOX(&factorized_reduce));
  m.impl("factorized_reduce_backward", TORCH_BOX(&factorized_reduce_backward));
}
