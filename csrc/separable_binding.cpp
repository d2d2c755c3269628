// The separable stage and the mixed sum as operators of torch; see binding.cpp. Activations are [N, H, W, C] with C a
// multiple of 16; weights may have fewer channels and are padded with zeros here.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/feedback.h"
#include "cpu/mixed_sum.h"
#include "cpu/separable_stage.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

void check(const char* name, const Tensor& tensor, ScalarType dtype = ScalarType::Float) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous(), name, ": expected a contiguous tensor on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected ", torch::headeronly::toString(dtype));
}

const float* pointer(const char* name, const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return nullptr;
  check(name, *tensor);
  return tensor->const_data_ptr<float>();
}

// The weights of K branches with C channels each, out of ones that have fewer.
class Weights {
 public:
  Weights(
      const Tensor& depthwise,  // [Σ c · k²]
      const Tensor& pointwise,  // [K, c, c]
      const Ints& kernels,
      int64_t channels)
      : kernels_(kernels), own_(pointwise.size(1)), c_(channels) {
    check("depthwise", depthwise);
    check("pointwise", pointwise);
    STD_TORCH_CHECK(pointwise.size(0) == int64_t(kernels.size()), "pointwise: expected a matrix for each branch");
    STD_TORCH_CHECK(pointwise.size(2) == own_ && own_ <= c_, "pointwise: expected square matrices");
    depthwise_ = depthwise.const_data_ptr<float>();
    pointwise_ = pointwise.const_data_ptr<float>();
    int64_t taps = 0;
    for (int64_t k : kernels) {
      STD_TORCH_CHECK(k == 3 || k == 5, "kernels: expected 3 or 5");
      offsets_.push_back(taps);
      taps += k * k;
    }
    STD_TORCH_CHECK(depthwise.numel() == taps * own_, "depthwise: expected c · k² elements for each branch");
    if (own_ == c_) return;
    padded_depthwise_.resize(taps * c_);
    padded_pointwise_.resize(kernels.size() * c_ * c_);
    for (size_t k = 0; k < kernels.size(); k++) {
      const int64_t n = kernels[k] * kernels[k];
      std::copy(depthwise_ + offsets_[k] * own_, depthwise_ + (offsets_[k] + n) * own_,
                padded_depthwise_.begin() + offsets_[k] * c_);
      for (int64_t i = 0; i < own_; i++)
        std::copy(pointwise_ + (k * own_ + i) * own_, pointwise_ + (k * own_ + i + 1) * own_,
                  padded_pointwise_.begin() + (k * c_ + i) * c_);
    }
  }

  const float* depthwise(int k) const {
    return own_ == c_ ? depthwise_ + offsets_[k] * c_ : padded_depthwise_.data() + offsets_[k] * c_;
  }
  const float* pointwise(int k) const { return (own_ == c_ ? pointwise_ : padded_pointwise_.data()) + k * c_ * c_; }
  int64_t own() const { return own_; }

 private:
  Ints kernels_, offsets_;
  int64_t own_, c_;
  const float *depthwise_, *pointwise_;
  std::vector<float> padded_depthwise_, padded_pointwise_;
};

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
  Tensor z = torch::stable::new_empty(x, {s.branches, s.n, s.ho, s.wo, s.c});
  Tensor sum = torch::stable::new_empty(x, {s.branches, s.c}, ScalarType::Double);
  Tensor sum_sq = torch::stable::new_empty(x, {s.branches, s.c}, ScalarType::Double);
  bionas::stage_forward(
      s, {z.mutable_data_ptr<float>(), sum.mutable_data_ptr<double>(), sum_sq.mutable_data_ptr<double>()});
  return {z, sum, sum_sq};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> stage_backward(
    const Tensor& grad,                     // [E, N, H_out, W_out, C]
    const std::optional<Tensor>& own_grad,  // [M, N, H_out, W_out, C]
    Ints grad_index,                        // for each branch, counted through both
    const Tensor& z,                        // [K, N, H_out, W_out, C]
    const Tensor& a, const Tensor& b, const Tensor& d,  // [K, C]
    const Tensor& x, const Tensor& depthwise, const Tensor& pointwise, const Tensor& depthwise_feedback,
    const Tensor& pointwise_feedback, Ints kernels, Ints dilations, int64_t stride, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, bool weights_wanted) {
  bionas::Stage s = make_stage(x, kernels, stride, scale, shift);
  const Weights weights(depthwise, pointwise, kernels, s.c);
  const Weights feedback(depthwise_feedback, pointwise_feedback, kernels, s.c);
  check("z", z);
  check("grad", grad);
  check("a", a);
  check("b", b);
  check("d", d);
  const float* own = pointer("own_grad", own_grad);
  const int64_t image = s.n * s.ho * s.wo * s.c, edges = grad.size(0), c = s.c, real = weights.own();
  int64_t taps = 0;
  for (int64_t k : kernels) taps += k * k;
  std::vector<float> depthwise_grads(weights_wanted ? taps * c : 0), pointwise_grads(weights_wanted ? s.branches * c * c : 0);
  std::vector<bionas::Branch> branches(s.branches);
  for (int64_t k = 0, t = 0; k < s.branches; t += kernels[k] * kernels[k], k++) {
    const int64_t i = grad_index[k];
    STD_TORCH_CHECK(i >= 0 && (i < edges || (own && i - edges < own_grad->size(0))), "grad_index: out of range");
    branches[k] = {
        int(kernels[k]),
        int(dilations[k]),
        weights.depthwise(k),
        weights.pointwise(k),
        feedback.depthwise(k),
        feedback.pointwise(k),
        weights_wanted ? depthwise_grads.data() + t * c : nullptr,
        weights_wanted ? pointwise_grads.data() + k * c * c : nullptr,
        i < edges ? grad.const_data_ptr<float>() + i * image : own + (i - edges) * image};
  }
  s.branch = branches.data();
  Tensor grad_x = torch::stable::empty_like(x);
  const int64_t rows = s.shared ? 0 : s.branches;
  Tensor sum = torch::stable::new_empty(x, {rows, c}, ScalarType::Double);
  Tensor product = torch::stable::new_empty(x, {rows, c}, ScalarType::Double);
  bionas::stage_backward(
      s, {z.const_data_ptr<float>(), a.const_data_ptr<float>(), b.const_data_ptr<float>(), d.const_data_ptr<float>(),
          grad_x.mutable_data_ptr<float>(), rows ? sum.mutable_data_ptr<double>() : nullptr,
          rows ? product.mutable_data_ptr<double>() : nullptr});
  Tensor depthwise_grad = torch::stable::new_empty(x, {weights_wanted ? taps * real : 0});
  Tensor pointwise_grad = torch::stable::new_empty(x, {weights_wanted ? s.branches : 0, real, real});
  if (weights_wanted) {
    float* to = depthwise_grad.mutable_data_ptr<float>();
    for (int64_t k = 0, t = 0; k < s.branches; t += kernels[k] * kernels[k], k++)
      to = std::copy_n(depthwise_grads.data() + t * c, kernels[k] * kernels[k] * real, to);
    to = pointwise_grad.mutable_data_ptr<float>();
    for (int64_t k = 0; k < s.branches; k++)
      for (int64_t i = 0; i < real; i++) to = std::copy_n(pointwise_grads.data() + (k * c + i) * c, real, to);
  }
  return {grad_x, sum, product, depthwise_grad, pointwise_grad};
}

// B of many layers whose weights lie one after the other; 0 where the mode is custom.
Tensor feedback_segments(
    const Tensor& weight,                 // flat
    const std::optional<Tensor>& stored,  // flat
    const std::optional<Tensor>& stream,  // int64 [segments, 2]
    Ints lengths, std::vector<std::string> modes, std::vector<double> bounds, std::vector<double> scales) {
  check("weight", weight);
  const float* kept = pointer("stored", stored);
  if (stream.has_value()) check("stream", *stream, ScalarType::Long);
  const int64_t* words = stream.has_value() ? stream->const_data_ptr<int64_t>() : nullptr;
  Tensor output = torch::stable::empty_like(weight);
  const float* w = weight.const_data_ptr<float>();
  float* b = output.mutable_data_ptr<float>();
  int64_t first = 0;
  for (size_t k = 0; k < lengths.size(); first += lengths[k], k++) {
    const std::string& mode = modes[k];
    STD_TORCH_CHECK(kept || mode.rfind("stored", 0) != 0, "stored: needed by mode ", mode);
    STD_TORCH_CHECK(words || mode != "drawn_sign", "stream: needed by mode ", mode);
    if (mode == "weight") std::copy_n(w + first, lengths[k], b + first);
    else if (mode == "stored") std::copy_n(kept + first, lengths[k], b + first);
    else if (mode == "custom") std::fill_n(b + first, lengths[k], 0.0f);
    else {
      bionas::FeedbackWeight a{};
      a.output = b + first;
      a.weight = w + first;
      a.count = lengths[k];
      a.bound = float(bounds[k]);
      a.scale = float(scales[k]);
      a.magnitude = mode == "sign" ? bionas::Magnitude::constant
                    : mode == "stored_sign" ? bionas::Magnitude::stored : bionas::Magnitude::drawn;
      if (kept) a.stored = kept + first;
      if (words) a.stream = {uint64_t(words[2 * k]), uint32_t(words[2 * k + 1])};
      bionas::feedback_weight(a);
    }
  }
  return output;
}

struct Maps {
  Maps(const std::vector<Tensor>& stacks, const Ints& edges, int64_t count) {
    for (const Tensor& stack : stacks) {
      check("maps", stack);
      const int64_t size = stack.size(0) ? stack.numel() / stack.size(0) : 0;
      for (int64_t k = 0; k < stack.size(0); k++) pointers.push_back(stack.const_data_ptr<float>() + k * size);
    }
    const Tensor& first = stacks[0];
    sum.c = first.size(4);
    sum.p = first.size(1) * first.size(2) * first.size(3);
    sum.edges = int(count);
    sum.maps = int(pointers.size());
    sum.map = pointers.data();
    sum.edge = edges.data();
    STD_TORCH_CHECK(edges.size() == pointers.size() && sum.c % 16 == 0, "edges: expected one for each map");
    for (int64_t e : edges) STD_TORCH_CHECK(e >= 0 && e < count, "edges: out of range");
  }
  bionas::MixedSum sum{};
  std::vector<const float*> pointers;
};

Tensor mixed_sum(
    std::vector<Tensor> maps,  // stacks [K_i, N, H, W, C]
    Ints edges, const Tensor& weight, const Tensor& offset) {
  const Maps m(maps, edges, offset.size(0));
  check("weight", weight);
  check("offset", offset);
  Tensor out = torch::stable::new_empty(
      maps[0], {offset.size(0), maps[0].size(1), maps[0].size(2), maps[0].size(3), maps[0].size(4)});
  bionas::mixed_sum_forward(
      m.sum, weight.const_data_ptr<float>(), offset.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  return out;
}

std::tuple<Tensor, Tensor> mixed_sum_backward(std::vector<Tensor> maps, Ints edges, const Tensor& grad) {
  const Maps m(maps, edges, grad.size(0));
  check("grad", grad);
  Tensor grad_sum = torch::stable::new_empty(grad, {m.sum.edges, m.sum.c}, ScalarType::Double);
  Tensor product_sum = torch::stable::new_empty(grad, {m.sum.maps, m.sum.c}, ScalarType::Double);
  bionas::mixed_sum_backward(
      m.sum, grad.const_data_ptr<float>(), grad_sum.mutable_data_ptr<double>(), product_sum.mutable_data_ptr<double>());
  return {grad_sum, product_sum};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def(
      "stage_forward(Tensor x, Tensor depthwise, Tensor pointwise, int[] kernels, int[] dilations, int stride, "
      "Tensor? scale, Tensor? shift) -> (Tensor, Tensor, Tensor)");
  m.def(
      "stage_backward(Tensor grad, Tensor? own_grad, int[] grad_index, Tensor z, Tensor a, Tensor b, Tensor d, "
      "Tensor x, Tensor depthwise, Tensor pointwise, Tensor depthwise_feedback, Tensor pointwise_feedback, "
      "int[] kernels, int[] dilations, int stride, Tensor? scale, Tensor? shift, bool weights) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "feedback_segments(Tensor weight, Tensor? stored, Tensor? stream, int[] lengths, str[] modes, float[] bounds, "
      "float[] scales) -> Tensor");
  m.def("mixed_sum(Tensor[] maps, int[] edges, Tensor weight, Tensor offset) -> Tensor");
  m.def("mixed_sum_backward(Tensor[] maps, int[] edges, Tensor grad) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("stage_forward", TORCH_BOX(&stage_forward));
  m.impl("stage_backward", TORCH_BOX(&stage_backward));
  m.impl("feedback_segments", TORCH_BOX(&feedback_segments));
  m.impl("mixed_sum", TORCH_BOX(&mixed_sum));
  m.impl("mixed_sum_backward", TORCH_BOX(&mixed_sum_backward));
}
