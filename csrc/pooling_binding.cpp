// The two pools as operators of torch; see library.cpp. Activations are [N, H, W, C] with C a multiple of 16.

#include "arguments.h"
#include "cpu/pooling.h"

namespace {

using namespace bionas::arguments;

template <class Map>
bionas::Pooling<Map> make_pooling(const Tensor& x, int64_t stride) {
  check_maps("x", x, 4, false, dtype_of<Map>);
  check_range("stride", stride, 1, 2);
  bionas::Pooling<Map> p{};
  p.n = x.size(0);
  p.h = x.size(1);
  p.w = x.size(2);
  p.c = x.size(3);
  p.stride = int(stride);
  p.ho = (p.h + stride - 1) / stride;
  p.wo = (p.w + stride - 1) / stride;
  p.x = data<Map>(x);
  return p;
}

std::tuple<Tensor, Tensor, Tensor> pooling(const Tensor& x, int64_t stride) {
  return with_maps(x, [&](auto number) -> std::tuple<Tensor, Tensor, Tensor> {
    using Map = decltype(number);
    const auto p = make_pooling<Map>(x, stride);
    Tensor z = new_map<Map>(x, {2, p.n, p.ho, p.wo, p.c});
    Tensor sum = torch::stable::new_empty(x, {2, p.c}, ScalarType::Double);
    Tensor sum_sq = torch::stable::new_empty(x, {2, p.c}, ScalarType::Double);
    bionas::pooling_forward(
        p, mutable_data<Map>(z), sum.mutable_data_ptr<double>(), sum_sq.mutable_data_ptr<double>());
    return {z, sum, sum_sq};
  });
}

Tensor pooling_backward(Tensors grads, const Tensor& x, int64_t stride) {
  return with_maps(x, [&](auto number) {
    const auto p = make_pooling<decltype(number)>(x, stride);
    STD_TORCH_CHECK(grads.size() == 2, "grads: expected two");
    for (const Tensor& grad : grads) {
      check("grads", grad);
      STD_TORCH_CHECK(int64_t(grad.numel()) == p.n * p.ho * p.wo * p.c, "grads: expected [N, H_out, W_out, C]");
    }
    Tensor out = new_map(x, {p.n, p.h, p.w, p.c});
    bionas::pooling_backward(
        p, grads[0].const_data_ptr<float>(), grads[1].const_data_ptr<float>(), out.mutable_data_ptr<float>());
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def("pooling(Tensor x, int stride) -> (Tensor, Tensor, Tensor)");
  m.def("pooling_backward(Tensor[] grads, Tensor x, int stride) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("pooling", TORCH_BOX(&pooling));
  m.impl("pooling_backward", TORCH_BOX(&pooling_backward));
}
