// The separable stage as operators of torch; see library.cpp. Activations are [N, H, W, C] with C a multiple of 16;
// weights may have fewer channels and are padded with zeros here.

#include "arguments.h"

namespace {

using namespace bionas::arguments;

// The common arguments of both passes, converted for the kernels.
template <class Map>
class StageArguments {
 public:
  StageArguments(
      const Tensor& x,           // [N, H, W, C] or [K, N, H, W, C]
      const Tensors& weights,    // depthwise [Σ c · k²] and pointwise [K, c, c]
      const Ints& stage,         // the numbers of StageRecord
      const Tensors& affine)     // scale and shift, [K, C] each, or none
      : record(stage), own_(take("weights", weights, channels(x))) {
    STD_TORCH_CHECK(record.stride == 1 || x.dim() == 4, "stride: expected 1, or 2 for a shared input");
    const int64_t first = x.dim() - 4;
    STD_TORCH_CHECK(first == 0 || x.size(0) == int64_t(record.kernels.size()), "x: expected an input for each branch");
    s.n = x.size(first);
    s.h = x.size(first + 1);
    s.w = x.size(first + 2);
    s.c = x.size(first + 3);
    s.stride = int(record.stride);
    s.ho = (s.h + s.stride - 1) / s.stride;
    s.wo = (s.w + s.stride - 1) / s.stride;
    s.branches = int(record.kernels.size());
    s.x = data<Map>(x);
    s.shared = first == 0;
    STD_TORCH_CHECK(affine.empty() || affine.size() == 2, "affine: expected scale and shift, or none");
    for (const Tensor& rows : affine) check_rows("affine", rows, s.branches, s.c);
    s.scale = affine.empty() ? nullptr : affine[0].const_data_ptr<float>();
    s.shift = affine.empty() ? nullptr : affine[1].const_data_ptr<float>();
    branches.resize(s.branches);
    for (int k = 0; k < s.branches; k++) {
      branches[k].kernel = int(record.kernels[k]);
      branches[k].dilation = int(record.dilations[k]);
      branches[k].depthwise = own_.depthwise(k);
      branches[k].pointwise = own_.pointwise(k);
    }
    s.branch = branches.data();
  }
  StageArguments(const StageArguments&) = delete;
  StageArguments& operator=(const StageArguments&) = delete;

  Weights take(const char* name, const Tensors& weights, int64_t channels) const {
    STD_TORCH_CHECK(weights.size() == 2, name, ": expected depthwise and pointwise ones");
    return Weights(weights[0], weights[1], record.kernels, channels);
  }
  static int64_t channels(const Tensor& x) {
    check_maps("x", x, x.dim() == 5 ? 5 : 4, false, dtype_of<Map>);
    return x.size(x.dim() - 1);
  }
  const Weights& own() const { return own_; }
  int64_t map() const { return s.n * s.ho * s.wo * s.c; }

  const StageRecord record;
  bionas::Stage<Map> s{};
  std::vector<bionas::Branch> branches;

 private:
  Weights own_;
};

template <class Map>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensors& weights, const Ints& stage,
                                           const Tensors& affine) {
  const StageArguments<Map> all(x, weights, stage, affine);
  const bionas::Stage<Map>& s = all.s;
  Tensor z = new_map<Map>(x, {s.branches, s.n, s.ho, s.wo, s.c});
  Tensor sum = torch::stable::new_empty(x, {s.branches, s.c}, ScalarType::Double);
  Tensor sum_sq = torch::stable::new_empty(x, {s.branches, s.c}, ScalarType::Double);
  bionas::stage_forward<Map>(
      s, {mutable_data<Map>(z), sum.mutable_data_ptr<double>(), sum_sq.mutable_data_ptr<double>()});
  return {z, sum, sum_sq};
}

std::tuple<Tensor, Tensor, Tensor> stage_forward(const Tensor& x, Tensors weights, Ints stage, Tensors affine) {
  return with_maps(x, [&](auto number) { return forward<decltype(number)>(x, weights, stage, affine); });
}

template <class Map>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensors& grads, const Tensors& prologue,  // the arguments of Prologue
    const Tensor& x, const Tensors& weights, const Tensors& feedback, const Ints& stage, const Tensors& affine,
    bool weight_grads) {
  StageArguments<Map> all(x, weights, stage, affine);
  const bionas::Stage<Map>& s = all.s;
  const Prologue<Map> incoming(grads, prologue, s.branches, all.map(), s.c);
  const Weights down = all.take("feedback", feedback, s.c);
  WeightGrads made(all.own(), all.record.kernels, s.c);
  const int64_t own = all.own().own();
  Tensor depthwise_grad = new_map(x, {weight_grads ? made.depthwise_size() : 0});
  Tensor pointwise_grad = new_map(x, {weight_grads ? s.branches : 0, own, own});
  for (int k = 0; k < s.branches; k++) {
    all.branches[k].grad = incoming.grads[k];
    all.branches[k].depthwise_feedback = down.depthwise(k);
    all.branches[k].pointwise_feedback = down.pointwise(k);
  }
  if (weight_grads)
    made.give(all.branches, depthwise_grad.mutable_data_ptr<float>(), pointwise_grad.mutable_data_ptr<float>());
  Tensor grad_x = s.shared ? new_map(x, {s.n, s.h, s.w, s.c}) : new_map(x, {s.branches, s.n, s.h, s.w, s.c});
  const int64_t rows = s.shared ? 0 : s.branches;
  Tensor sum = torch::stable::new_empty(x, {rows, s.c}, ScalarType::Double);
  Tensor product = torch::stable::new_empty(x, {rows, s.c}, ScalarType::Double);
  bionas::stage_backward<Map>(
      s, {incoming.z, incoming.a, incoming.b, incoming.d, grad_x.mutable_data_ptr<float>(),
          rows ? sum.mutable_data_ptr<double>() : nullptr, rows ? product.mutable_data_ptr<double>() : nullptr});
  if (weight_grads) made.finish();
  return {grad_x, sum, product, depthwise_grad, pointwise_grad};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stage_backward(
    Tensors grads, Tensors prologue, const Tensor& x, Tensors weights, Tensors feedback, Ints stage, Tensors affine,
    bool weight_grads) {
  return with_maps(x, [&](auto number) {
    return backward<decltype(number)>(grads, prologue, x, weights, feedback, stage, affine, weight_grads);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def("stage_forward(Tensor x, Tensor[] weights, int[] stage, Tensor[] affine) -> (Tensor, Tensor, Tensor)");
  m.def(
      "stage_backward(Tensor[] grads, Tensor[] prologue, Tensor x, Tensor[] weights, Tensor[] feedback, int[] stage, "
      "Tensor[] affine, bool weight_grads) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("stage_forward", TORCH_BOX(&stage_forward));
  m.impl("stage_backward", TORCH_BOX(&stage_backward));
}
