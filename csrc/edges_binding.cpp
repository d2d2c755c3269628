// All separable candidates of the edges that leave a state, as operators of torch; see binding.cpp.

#include "arguments.h"
#include "cpu/separable_edges.h"

namespace {

using namespace bionas::arguments;

// The arguments that both passes share, as the kernels take them.
class Edges {
 public:
  Edges(const Tensor& x, const std::vector<Tensor>& weights, const Ints& kernels, const Ints& dilations, int64_t stride,
        const Ints& edges, int64_t count, const Tensor& mixing)
      : kernels_(kernels), edges_(edges) {
    check("x", x);
    check("mixing", mixing, ScalarType::Double);
    STD_TORCH_CHECK(x.dim() == 4 && x.size(3) % 16 == 0, "x: expected [N, H, W, C] with a multiple of 16 channels");
    STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: expected 1 or 2");
    const std::size_t branches = kernels.size();
    STD_TORCH_CHECK(branches == dilations.size() && branches == edges.size() && branches == std::size_t(mixing.numel()),
                    "kernels: expected as many as dilations, edges and mixing weights");
    for (int64_t e : edges) STD_TORCH_CHECK(e >= 0 && e < count, "edges: out of range");
    STD_TORCH_CHECK(weights.size() == 4, "weights: expected depthwise and pointwise ones of two stages");
    const int64_t twice = weights[3].size(0);
    STD_TORCH_CHECK(twice <= int64_t(branches), "weights: expected no more second stages than branches");
    first_.resize(branches);
    second_.resize(twice);
    for (std::size_t k = 0; k < branches; k++) {
      first_[k].kernel = int(kernels[k]);
      first_[k].dilation = int(dilations[k]);
    }
    for (int64_t k = 0; k < twice; k++) {
      second_[k].kernel = int(kernels[k]);
      second_[k].dilation = 1;
    }
    arguments.n = x.size(0);
    arguments.h = x.size(1);
    arguments.w = x.size(2);
    arguments.c = x.size(3);
    arguments.stride = int(stride);
    arguments.branches = int(branches);
    arguments.twice = int(twice);
    arguments.edges = int(count);
    arguments.first = first_.data();
    arguments.second = second_.data();
    arguments.edge = edges_.data();
    arguments.mixing = mixing.const_data_ptr<double>();
    arguments.x = x.const_data_ptr<float>();
    own_ = take(weights);
    for (std::size_t k = 0; k < branches; k++) {
      first_[k].depthwise = own_[0].depthwise(k);
      first_[k].pointwise = own_[0].pointwise(k);
    }
    for (int64_t k = 0; k < twice; k++) {
      second_[k].depthwise = own_[1].depthwise(k);
      second_[k].pointwise = own_[1].pointwise(k);
    }
  }
  Edges(const Edges&) = delete;
  Edges& operator=(const Edges&) = delete;

  void set_feedback(const std::vector<Tensor>& feedback) {
    feedback_ = take(feedback);
    for (std::size_t k = 0; k < first_.size(); k++) {
      first_[k].depthwise_feedback = feedback_[0].depthwise(k);
      first_[k].pointwise_feedback = feedback_[0].pointwise(k);
    }
    for (std::size_t k = 0; k < second_.size(); k++) {
      second_[k].depthwise_feedback = feedback_[1].depthwise(k);
      second_[k].pointwise_feedback = feedback_[1].pointwise(k);
    }
  }

  void set_statistics(const Tensor& mean, const Tensor& var, bool training) {
    for (const Tensor* tensor : {&mean, &var}) {
      check("mean, var", *tensor, ScalarType::Double);
      STD_TORCH_CHECK(int64_t(tensor->numel()) == (arguments.twice + arguments.branches) * arguments.c,
                      "mean, var: expected a row for each normalisation");
    }
    arguments.mean = const_cast<double*>(mean.const_data_ptr<double>());
    arguments.var = const_cast<double*>(var.const_data_ptr<double>());
    arguments.training = training;
  }

  std::vector<const float*> maps(const char* name, const std::vector<Tensor>& tensors) const {
    STD_TORCH_CHECK(int64_t(tensors.size()) == arguments.edges, name, ": expected a tensor for each edge");
    std::vector<const float*> pointers;
    for (const Tensor& tensor : tensors) {
      check(name, tensor);
      STD_TORCH_CHECK(int64_t(tensor.numel()) == arguments.map(), name, ": expected [N, H_out, W_out, C]");
      pointers.push_back(tensor.const_data_ptr<float>());
    }
    return pointers;
  }

  Ints second_kernels() const { return Ints(kernels_.begin(), kernels_.begin() + arguments.twice); }
  const Weights& own(int stage) const { return own_[stage]; }

  bionas::SeparableEdges arguments{};
  std::vector<bionas::Branch> first_, second_;

 private:
  std::vector<Weights> take(const std::vector<Tensor>& weights) const {
    STD_TORCH_CHECK(weights.size() == 4, "weights: expected depthwise and pointwise ones of two stages");
    return {Weights(weights[0], weights[1], kernels_, arguments.c),
            Weights(weights[2], weights[3], second_kernels(), arguments.c)};
  }

  Ints kernels_, edges_;
  std::vector<Weights> own_, feedback_;
};

std::tuple<std::vector<Tensor>, Tensor, Tensor, Tensor> separable_edges(
    const Tensor& x,
    std::vector<Tensor> weights,  // depthwise [Σ c · k²] and pointwise [K, c, c] of the first stages, of the second ones
    Ints kernels, Ints dilations, int64_t stride,
    Ints edges, int64_t count,    // the edge of each branch, and how many edges there are
    const Tensor& mixing,         // float64 [K]
    const std::optional<Tensor>& given_mean,  // float64 [M + K, C], or of this batch
    const std::optional<Tensor>& given_var, std::vector<Tensor> into) {
  Edges all(x, weights, kernels, dilations, stride, edges, count, mixing);
  bionas::SeparableEdges& e = all.arguments;
  const bool training = !given_mean.has_value() || !given_var.has_value();
  const std::vector<int64_t> rows{e.twice + e.branches, e.c};
  Tensor mean = torch::stable::new_empty(x, rows, ScalarType::Double);
  Tensor var = torch::stable::new_empty(x, rows, ScalarType::Double);
  if (!training) {
    all.set_statistics(*given_mean, *given_var, false);
    std::copy_n(e.mean, mean.numel(), mean.mutable_data_ptr<double>());
    std::copy_n(e.var, var.numel(), var.mutable_data_ptr<double>());
  }
  all.set_statistics(mean, var, training);
  const std::vector<const float*> base = into.empty() ? std::vector<const float*>() : all.maps("into", into);
  std::vector<Tensor> out;
  std::vector<float*> to;
  for (int64_t i = 0; i < count; i++) {
    out.push_back(new_map(x, {e.n, e.ho(), e.wo(), e.c}));
    to.push_back(out[i].mutable_data_ptr<float>());
  }
  Tensor z = new_map(x, {e.branches, e.n, e.ho(), e.wo(), e.c});
  bionas::separable_edges_forward(e, {z.mutable_data_ptr<float>(), base.empty() ? nullptr : base.data(), to.data()});
  return {out, z, mean, var};
}

std::tuple<Tensor, Tensor, Tensor> separable_edges_backward(
    std::vector<Tensor> grads,     // one an edge
    const Tensor& z,
    const Tensor& mean, const Tensor& var, bool training,
    const Tensor& x, std::vector<Tensor> weights,
    std::vector<Tensor> feedback,  // laid out like the weights; none: only the gradients of mixing are wanted
    Ints kernels, Ints dilations, int64_t stride, Ints edges, const Tensor& mixing, bool weights_wanted) {
  Edges all(x, weights, kernels, dilations, stride, edges, grads.size(), mixing);
  bionas::SeparableEdges& e = all.arguments;
  all.set_statistics(mean, var, training);
  check("z", z);
  STD_TORCH_CHECK(int64_t(z.numel()) == e.branches * e.map(), "z: expected a map for each branch");
  const bool down = !feedback.empty();
  if (down) all.set_feedback(feedback);
  WeightGrads first(all.own(0), kernels, e.c), second(all.own(1), all.second_kernels(), e.c);
  const bool wanted = down && weights_wanted;
  Tensor grad_weights = new_map(x, {wanted ? first.size() + second.size() : 0});
  if (wanted) {
    float *to = grad_weights.mutable_data_ptr<float>(), *then = to + first.size();
    first.give(all.first_, to, to + first.depthwise_size());
    second.give(all.second_, then, then + second.depthwise_size());
  }
  Tensor grad_mixing = torch::stable::new_empty(x, {e.branches}, ScalarType::Double);
  Tensor grad_x = down ? new_map(x, {e.n, e.h, e.w, e.c}) : torch::stable::new_empty(x, {0});
  bionas::separable_edges_backward(
      e, {z.const_data_ptr<float>(), all.maps("grads", grads).data(), grad_mixing.mutable_data_ptr<double>(),
          down ? grad_x.mutable_data_ptr<float>() : nullptr});
  if (wanted) first.finish(), second.finish();
  return {grad_mixing, grad_x, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def(
      "separable_edges(Tensor x, Tensor[] weights, int[] kernels, int[] dilations, int stride, int[] edges, int count, "
      "Tensor mixing, Tensor? mean, Tensor? var, Tensor[] into) -> (Tensor[], Tensor, Tensor, Tensor)");
  m.def(
      "separable_edges_backward(Tensor[] grads, Tensor z, Tensor mean, Tensor var, bool training, Tensor x, "
      "Tensor[] weights, Tensor[] feedback, int[] kernels, int[] dilations, int stride, int[] edges, Tensor mixing, "
      "bool weights_wanted) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("separable_edges", TORCH_BOX(&separable_edges));
  m.impl("separable_edges_backward", TORCH_BOX(&separable_edges_backward));
}
