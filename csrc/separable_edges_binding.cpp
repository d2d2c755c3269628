// All separable candidates of the edges from a state, as operators of torch; see library.cpp.

#include "arguments.h"
#include "cpu/separable_edges.h"

namespace {

using namespace bionas::arguments;

// The common arguments of both passes, converted for the kernels.
template <class Map>
class Edges {
 public:
  Edges(
      const Tensor& x, const Tensors& weights,
      const Ints& numbers,    // the numbers of PlanRecord
      const Tensor& mixing,   // float64 [K]
      int64_t images)
      : plan(numbers), first_(plan.first.kernels.size()), second_(plan.twice) {
    check_maps("x", x, 4, false, dtype_of<Map>);
    check("mixing", mixing, ScalarType::Double);
    STD_TORCH_CHECK(first_.size() == std::size_t(mixing.numel()), "mixing: expected a weight for each branch");
    for (std::size_t k = 0; k < first_.size(); k++) {
      first_[k].kernel = int(plan.first.kernels[k]);
      first_[k].dilation = int(plan.first.dilations[k]);
    }
    for (std::size_t k = 0; k < second_.size(); k++) {
      second_[k].kernel = int(plan.second.kernels[k]);
      second_[k].dilation = int(plan.second.dilations[k]);
    }
    arguments.n = x.size(0);
    arguments.h = x.size(1);
    arguments.w = x.size(2);
    arguments.c = x.size(3);
    arguments.images = checked_images(images, arguments.c);
    arguments.stride = int(plan.first.stride);
    arguments.branches = int(first_.size());
    arguments.twice = int(second_.size());
    arguments.edges = int(plan.count);
    arguments.first = first_.data();
    arguments.second = second_.data();
    arguments.edge = plan.edges.data();
    arguments.mixing = mixing.const_data_ptr<double>();
    arguments.x = data<Map>(x);
    own_ = take("weights", weights);
    for (std::size_t k = 0; k < first_.size(); k++) {
      first_[k].depthwise = own_[0].depthwise(k);
      first_[k].pointwise = own_[0].pointwise(k);
    }
    for (std::size_t k = 0; k < second_.size(); k++) {
      second_[k].depthwise = own_[1].depthwise(k);
      second_[k].pointwise = own_[1].pointwise(k);
    }
  }
  Edges(const Edges&) = delete;
  Edges& operator=(const Edges&) = delete;

  void set_feedback(const Tensors& feedback) {
    feedback_ = take("feedback", feedback);
    for (std::size_t k = 0; k < first_.size(); k++) {
      first_[k].depthwise_feedback = feedback_[0].depthwise(k);
      first_[k].pointwise_feedback = feedback_[0].pointwise(k);
    }
    for (std::size_t k = 0; k < second_.size(); k++) {
      second_[k].depthwise_feedback = feedback_[1].depthwise(k);
      second_[k].pointwise_feedback = feedback_[1].pointwise(k);
    }
  }

  void set_moments(const Moments& moments, bool training) {
    arguments.mean = const_cast<double*>(moments.mean);
    arguments.var = const_cast<double*>(moments.var);
    arguments.training = training;
  }

  std::vector<const float*> maps(const char* name, const OptionalTensors& tensors) const {
    STD_TORCH_CHECK(int64_t(tensors.size()) == arguments.edges, name, ": expected one for each edge");
    return maps_of(name, tensors, arguments.map());
  }

  int64_t rows() const { return arguments.twice + arguments.branches; }
  const Weights& own(int stage) const { return own_[stage]; }

  const PlanRecord plan;
  bionas::SeparableEdges<Map> arguments{};
  std::vector<bionas::Branch> first_, second_;

 private:
  std::vector<Weights> take(const char* name, const Tensors& weights) const {
    STD_TORCH_CHECK(weights.size() == 4, name, ": expected depthwise and pointwise ones of two stages");
    return {Weights(weights[0], weights[1], plan.first.kernels, arguments.c, arguments.images),
            Weights(weights[2], weights[3], plan.second.kernels, arguments.c, arguments.images)};
  }

  std::vector<Weights> own_, feedback_;
};

template <class Map>
std::tuple<Tensors, Tensor, Tensor, Tensor> forward(
    const Tensor& x,
    const Tensors& weights,  // depthwise [Σ c · k²] and pointwise [K, c, c] of the first stages, of the second ones
    const Ints& plan, const Tensor& mixing,
    const Tensors& moments,  // of every normalisation, [M + K, C]; none: the moments of this batch
    const OptionalTensors& into,  // one per edge
    int64_t images) {
  Edges<Map> all(x, weights, plan, mixing, images);
  bionas::SeparableEdges<Map>& e = all.arguments;
  const std::vector<const float*> base = all.maps("into", into);
  const std::vector<int64_t> rows{all.rows(), e.c};
  Tensor mean = torch::stable::new_empty(x, rows, ScalarType::Double);
  Tensor var = torch::stable::new_empty(x, rows, ScalarType::Double);
  if (!moments.empty()) {
    const Moments given(moments, all.rows(), e.c);
    std::copy_n(given.mean, mean.numel(), mean.mutable_data_ptr<double>());
    std::copy_n(given.var, var.numel(), var.mutable_data_ptr<double>());
  }
  all.set_moments(Moments({mean, var}, all.rows(), e.c), moments.empty());
  Tensors out;
  std::vector<float*> to;
  for (int64_t i = 0; i < e.edges; i++) {
    out.push_back(new_map(x, {e.n, e.ho(), e.wo(), e.c}));
    to.push_back(out[i].mutable_data_ptr<float>());
  }
  Tensor z = new_map<Map>(x, {e.branches, e.n, e.ho(), e.wo(), e.c});
  bionas::separable_edges_forward<Map>(e, {mutable_data<Map>(z), base.data(), to.data()});
  return {out, z, mean, var};
}

std::tuple<Tensors, Tensor, Tensor, Tensor> separable_edges(
    const Tensor& x, Tensors weights, Ints plan, const Tensor& mixing, Tensors moments, OptionalTensors into,
    int64_t images) {
  return with_maps(x, [&](auto number) {
    return forward<decltype(number)>(x, weights, plan, mixing, moments, into, images);
  });
}

template <class Map>
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensors& grads,     // one per edge
    const Tensors& saved,     // x; z, mean and var as the forward pass returned them
    const Tensors& weights,
    const Tensors& feedback,  // laid out like the weights; none: only the gradients of mixing are computed
    const Ints& plan, const Tensor& mixing, bool training, bool weight_grads, int64_t images) {
  const Tensor &x = saved[0], &z = saved[1];
  Edges<Map> all(x, weights, plan, mixing, images);
  bionas::SeparableEdges<Map>& e = all.arguments;
  all.set_moments(Moments({saved[2], saved[3]}, all.rows(), e.c), training);
  check("z", z, dtype_of<Map>);
  STD_TORCH_CHECK(int64_t(z.numel()) == e.branches * e.map(), "z: expected a map for each branch");
  const std::vector<const float*> incoming = all.maps("grads", OptionalTensors(grads.begin(), grads.end()));
  const bool down = !feedback.empty();
  if (down) all.set_feedback(feedback);
  WeightGrads first(all.own(0), all.plan.first.kernels, e.c), second(all.own(1), all.plan.second.kernels, e.c);
  const bool wanted = down && weight_grads;
  Tensor grad_weights = new_map(x, {wanted ? first.size() + second.size() : 0});
  if (wanted) {
    float *to = grad_weights.mutable_data_ptr<float>(), *then = to + first.size();
    first.give(all.first_, to, to + first.depthwise_size());
    second.give(all.second_, then, then + second.depthwise_size());
  }
  Tensor grad_mixing = torch::stable::new_empty(x, {e.branches}, ScalarType::Double);
  Tensor grad_x = down ? new_map(x, {e.n, e.h, e.w, e.c}) : new_map(x, {0});
  bionas::separable_edges_backward<Map>(
      e, {data<Map>(z), incoming.data(), grad_mixing.mutable_data_ptr<double>(),
          down ? grad_x.mutable_data_ptr<float>() : nullptr});
  if (wanted) first.finish(), second.finish();
  return {grad_mixing, grad_x, grad_weights};
}

std::tuple<Tensor, Tensor, Tensor> separable_edges_backward(
    Tensors grads, Tensors saved, Tensors weights, Tensors feedback, Ints plan, const Tensor& mixing, bool training,
    bool weight_grads, int64_t images) {
  STD_TORCH_CHECK(saved.size() == 4, "saved: expected x, z, mean, var");
  return with_maps(saved[0], [&](auto number) {
    return backward<decltype(number)>(grads, saved, weights, feedback, plan, mixing, training, weight_grads, images);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def(
      "separable_edges(Tensor x, Tensor[] weights, int[] plan, Tensor mixing, Tensor[] moments, Tensor?[] into, "
      "int images=1) -> (Tensor[], Tensor, Tensor, Tensor)");
  m.def(
      "separable_edges_backward(Tensor[] grads, Tensor[] saved, Tensor[] weights, Tensor[] feedback, int[] plan, "
      "Tensor mixing, bool training, bool weight_grads, int images=1) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("separable_edges", TORCH_BOX(&separable_edges));
  m.impl("separable_edges_backward", TORCH_BOX(&separable_edges_backward));
}
