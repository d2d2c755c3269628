// Factorized reductions as operators of torch; see library.cpp. Activations are [N, H, W, C] with C a multiple of 16;
// weights may have fewer channels.

#include "arguments.h"
#include "cpu/factorized_reduce.h"

namespace {

using namespace bionas::arguments;

template <class Map>
bionas::FactorizedReduce<Map> make_reductions(
    const Tensor& x,
    const Tensors& weights,  // [R, ⌈c/2⌉, c] and [R, ⌊c/2⌋, c]
    int64_t images) {
  STD_TORCH_CHECK(weights.size() == 2, "weights: expected first and second ones");
  const Tensor &first = weights[0], &second = weights[1];
  check_maps("x", x, 4, true, dtype_of<Map>);
  bionas::FactorizedReduce<Map> s{};
  s.n = x.size(0);
  s.h = x.size(1);
  s.w = x.size(2);
  s.c = x.size(3);
  s.images = checked_images(images, s.c);
  s.ho = (s.h + 1) / 2;
  s.wo = (s.w + 1) / 2;
  s.x = data<Map>(x);
  for (const Tensor& weight : weights) {
    check("first, second", weight);
    STD_TORCH_CHECK(weight.dim() == 3, "first, second: expected a matrix for each reduction");
  }
  s.count = first.size(0);
  s.own = first.size(2);
  check_range("reductions", s.count, 1, max_branches);
  STD_TORCH_CHECK(s.own > 0 && first.size(1) == s.own - s.own / 2 && second.size(0) == s.count && second.size(1) == s.own / 2 &&
                      second.size(2) == s.own && s.own <= s.c / images,
                  "first, second: expected the two halves of square matrices with at most as many channels as x");
  s.first = first.const_data_ptr<float>();
  s.second = second.const_data_ptr<float>();
  return s;
}

std::tuple<Tensor, Tensor, Tensor> factorized_reduce(const Tensor& x, Tensors weights, int64_t images) {
  return with_maps(x, [&](auto number) -> std::tuple<Tensor, Tensor, Tensor> {
    using Map = decltype(number);
    const auto s = make_reductions<Map>(x, weights, images);
    Tensor z = new_map<Map>(x, {s.count, s.n, s.ho, s.wo, s.c});
    Tensor sum = torch::stable::new_empty(x, {s.count, s.c}, ScalarType::Double);
    Tensor sum_sq = torch::stable::new_empty(x, {s.count, s.c}, ScalarType::Double);
    bionas::factorized_reduce_forward(
        s, mutable_data<Map>(z), sum.mutable_data_ptr<double>(), sum_sq.mutable_data_ptr<double>());
    return {z, sum, sum_sq};
  });
}

std::tuple<Tensor, Tensor, Tensor> factorized_reduce_backward(
    Tensors grads, Tensors prologue,  // the arguments of Prologue
    const Tensor& x, Tensors weights, Tensors feedback, bool weight_grads,
    int64_t images) {
  return with_maps(x, [&](auto number) -> std::tuple<Tensor, Tensor, Tensor> {
    using Map = decltype(number);
    make_reductions<Map>(x, weights, images);
    const auto s = make_reductions<Map>(x, feedback, images);
    STD_TORCH_CHECK(weights[0].size(0) == s.count && weights[0].size(2) == s.own,
                    "feedback: expected the shapes of the weights");
    const Prologue<Map> incoming(grads, prologue, s.count, s.n * s.ho * s.wo * s.c, s.c);
    Tensor grad_x = new_map(x, {s.n, s.h, s.w, s.c});
    Tensor first = weight_grads ? torch::stable::empty_like(weights[0]) : new_map(x, {0});
    Tensor second = weight_grads ? torch::stable::empty_like(weights[1]) : new_map(x, {0});
    bionas::factorized_reduce_backward<Map>(
        s, {incoming.grads.data(), incoming.z, incoming.a, incoming.b, incoming.d, grad_x.mutable_data_ptr<float>(),
            weight_grads ? first.mutable_data_ptr<float>() : nullptr,
            weight_grads ? second.mutable_data_ptr<float>() : nullptr});
    return {grad_x, first, second};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def("factorized_reduce(Tensor x, Tensor[] weights, int images=1) -> (Tensor, Tensor, Tensor)");
  m.def(
      "factorized_reduce_backward(Tensor[] grads, Tensor[] prologue, Tensor x, Tensor[] weights, Tensor[] feedback, "
      "bool weight_grads, int images=1) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("factorized_reduce", TORCH_BOX(&factorized_reduce));
  m.impl("factorized_reduce_backward", TORCH_BOX(&factorized_reduce_backward));
}
