// Edges of a discrete cell that leave one state, channels first, as operators of torch; see library.cpp. An edge is a
// chain of stages (ReLU, depthwise or none, pointwise, batch normalisation with affine parameters) of stride 1.

#include <cmath>

#include "arguments.h"
#include "cpu/planar_pool.h"
#include "cpu/planar_stage.h"
#include "cpu/planar_sum.h"

namespace {

using namespace bionas::arguments;
using bionas::Images;
using bionas::PlanarStage;
using Floats = std::vector<double>;

// A tensor [N, C, H, W] of floats or narrow numbers whose images are contiguous.
template <class Map>
Images<const Map> images(const char* name, const Tensor& x, int64_t n, int64_t c, int64_t h, int64_t w) {
  STD_TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == dtype_of<Map>, name, ": expected ",
                  torch::headeronly::toString(dtype_of<Map>), " on the CPU");
  STD_TORCH_CHECK(x.dim() == 4 && x.size(0) == n && x.size(1) == c && x.size(2) == h && x.size(3) == w, name,
                  ": expected [", n, ", ", c, ", ", h, ", ", w, "]");
  STD_TORCH_CHECK((w == 1 || x.stride(3) == 1) && (h == 1 || x.stride(2) == w) && (c == 1 || x.stride(1) == h * w),
                  name, ": expected contiguous images");
  return {data<Map>(x), x.stride(0)};
}

template <class Map>
Images<const Map> first_images(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.numel() > 0, "x: expected [N, C, H, W] with at least one element");
  check_range("channels", x.size(1), 1, max_channels);
  return images<Map>("x", x, x.size(0), x.size(1), x.size(2), x.size(3));
}

const float* row(const char* name, const Tensor& tensor, int64_t size) {
  check(name, tensor);
  STD_TORCH_CHECK(int64_t(tensor.numel()) == size, name, ": expected ", size, " elements, got ", tensor.numel());
  return tensor.const_data_ptr<float>();
}

// The stages of all edges, in order.
template <class Map>
struct Edges {
  // plan: the number of stages of each of E edges, 1 or 2; then kernel and dilation of each stage.
  // weights: depthwise [C, 1, k, k], unless the kernel is 0, and pointwise [C_out, C_in, 1, 1] of each stage.
  Edges(const Tensor& x, const Tensors& weights, const Ints& plan, int64_t edge_count)
      : x(first_images<Map>(x)), n(x.size(0)), h(x.size(2)), w(x.size(3)) {
    check_range("edges", edge_count, 1, std::min<int64_t>(max_edges, int64_t(plan.size())));
    std::size_t at = edge_count, weight = 0;
    for (int64_t e = 0; e < edge_count; e++) {
      check_range("stages", plan[e], 1, 2);
      begin.push_back(int64_t(stages.size()));
      int64_t channels = x.size(1);
      for (int64_t k = 0; k < plan[e]; k++, at += 2) {
        STD_TORCH_CHECK(at + 1 < plan.size(), "plan: expected a kernel and a dilation of each stage");
        PlanarStage<Map> s{};
        s.n = n, s.h = h, s.w = w, s.c_in = channels;
        s.kernel = int(plan[at]), s.dilation = plan[at + 1];
        STD_TORCH_CHECK(s.kernel == 3 || s.kernel == 5 || s.kernel == 7 || (s.kernel == 0 && k == 0),
                        "kernels: expected 0 (first stages only), 3, 5 or 7, got ", plan[at]);
        check_range("dilation", s.dilation, 1, max_dilation);
        if (s.kernel) s.depthwise = row("depthwise", next(weights, weight), s.c_in * s.taps());
        const Tensor& pointwise = next(weights, weight);
        check("pointwise", pointwise);
        STD_TORCH_CHECK(pointwise.dim() == 4 && pointwise.size(1) == s.c_in, "pointwise: expected [C_out, ", s.c_in,
                        ", 1, 1]");
        s.c_out = channels = pointwise.size(0);
        c = stages.empty() ? channels : c;
        STD_TORCH_CHECK(channels == c && c > 0, "pointwise: expected as many outputs as the first, ", c);
        s.pointwise = row("pointwise", pointwise, s.c_out * s.c_in);
        stages.push_back(s);
      }
    }
    STD_TORCH_CHECK(at == plan.size() && weight == weights.size(), "plan: expected the stages of the weights");
    begin.push_back(int64_t(stages.size()));
  }

  static const Tensor& next(const Tensors& tensors, std::size_t& index) {
    STD_TORCH_CHECK(index < tensors.size(), "weights: expected those of every stage");
    return tensors[index++];
  }

  int64_t edges() const { return int64_t(begin.size()) - 1; }
  int64_t positions() const { return h * w; }
  bool last(int64_t stage) const { return std::find(begin.begin(), begin.end(), stage + 1) != begin.end(); }

  Images<const Map> x;
  int64_t n, h, w, c = 0;
  std::vector<PlanarStage<Map>> stages;
  Ints begin;  // the first stage of each edge, and their number
};

// Batch normalisations of all stages: weight [C] and bias [C] of each, moments float64 [stages, C].
struct Norms {
  Norms(const Tensors& affine, const Floats& eps, double* mean, double* var, int64_t stages, int64_t c)
      : eps(eps), mean(mean), var(var), c(c), scale(stages * c), shift(stages * c) {
    STD_TORCH_CHECK(int64_t(affine.size()) == 2 * stages && int64_t(eps.size()) == stages,
                    "norms: expected a weight, a bias and an epsilon of each stage");
    for (const Tensor& tensor : affine) this->affine.push_back(row("norms", tensor, c));
  }
  double rstd(int64_t stage, int64_t i) const { return 1 / std::sqrt(var[stage * c + i] + eps[stage]); }
  double gamma(int64_t stage, int64_t i) const { return affine[2 * stage][i]; }

  // Moments of a batch from its sums, Σ z and Σ z².
  void set_moments(int64_t stage, const double* sum, const double* sum_sq, double positions) {
    for (int64_t i = 0; i < c; i++) {
      const double m = sum[i] / positions;
      mean[stage * c + i] = m;
      var[stage * c + i] = std::max(0.0, sum_sq[i] / positions - m * m);
      if (std::isnan(sum_sq[i])) var[stage * c + i] = sum_sq[i];
    }
  }
  // The normalisation as an affine map of z.
  void set_affine(int64_t stage) {
    for (int64_t i = 0; i < c; i++) {
      const double slope = gamma(stage, i) * rstd(stage, i);
      scale[stage * c + i] = float(slope);
      shift[stage * c + i] = float(affine[2 * stage + 1][i] - slope * mean[stage * c + i]);
    }
  }

  Floats eps;
  double *mean, *var;
  int64_t c;
  std::vector<const float*> affine;
  std::vector<float> scale, shift;  // [stages, C]
};

// Running mean, running variance and number of batches of the normalisation of each stage.
struct Running {
  Running(const Tensors& tensors, const Floats& momentum, int64_t stages, int64_t c) : momentum(momentum), c(c) {
    STD_TORCH_CHECK(int64_t(tensors.size()) == 3 * stages && int64_t(momentum.size()) == stages,
                    "running: expected mean, variance, number of batches and momentum of each stage");
    for (int64_t k = 0; k < stages; k++) {
      row("running", tensors[3 * k], c), row("running", tensors[3 * k + 1], c);
      check("running", tensors[3 * k + 2], ScalarType::Long);
      STD_TORCH_CHECK(tensors[3 * k + 2].numel() == 1, "running: expected one number of batches");
      mean.push_back(static_cast<float*>(tensors[3 * k].mutable_data_ptr()));
      var.push_back(static_cast<float*>(tensors[3 * k + 1].mutable_data_ptr()));
      batches.push_back(static_cast<int64_t*>(tensors[3 * k + 2].mutable_data_ptr()));
    }
  }
  void read(int64_t stage, double* m, double* v) const {
    std::copy_n(mean[stage], c, m);
    std::copy_n(var[stage], c, v);
  }
  void update(int64_t stage, const double* m, const double* v, double positions) const {
    for (int64_t i = 0; i < c; i++) {
      mean[stage][i] += float(momentum[stage] * (m[i] - mean[stage][i]));
      var[stage][i] += float(momentum[stage] * (v[i] * positions / (positions - 1) - var[stage][i]));
    }
    ++*batches[stage];
  }

  Floats momentum;
  int64_t c;
  std::vector<float*> mean, var;
  std::vector<int64_t*> batches;
};

const float* keep_of(const Tensor& keep, int64_t edge, int64_t edges, int64_t n) {
  if (!keep.numel()) return nullptr;
  return row("keep", keep, edges * n) + edge * n;
}

template <class Map>
std::tuple<Tensors, Tensors, Tensor, Tensor> edges_forward(
    const Tensor& x, const Tensors& weights,
    const Tensors& affine,        // weight and bias of the normalisation of each stage
    const Tensors& running,       // mean, variance, number of batches; updated in training, normalise otherwise
    const Ints& plan, const Floats& eps, const Floats& momentum,
    const OptionalTensors& into,  // one per edge
    const Tensor& keep,           // [edges, N], factors of the outputs; or empty
    bool training) {
  Edges<Map> all(x, weights, plan, int64_t(into.size()));
  const int64_t stages = int64_t(all.stages.size());
  const double positions = double(all.n * all.positions());
  STD_TORCH_CHECK(!training || positions > 1, "x: expected more than one value per channel in training");
  Tensor mean = torch::stable::new_empty(x, {stages, all.c}, ScalarType::Double);
  Tensor var = torch::stable::new_empty(x, {stages, all.c}, ScalarType::Double);
  Norms norms(affine, eps, mean.mutable_data_ptr<double>(), var.mutable_data_ptr<double>(), stages, all.c);
  const Running statistics(running, momentum, stages, all.c);
  const std::vector<int64_t> sizes{all.n, all.c, all.h, all.w};
  const int64_t image = all.c * all.positions();
  std::vector<double> sum(all.c), sum_sq(all.c);
  Tensors out, maps;
  for (int64_t e = 0; e < all.edges(); e++) {
    Images<const Map> input = all.x;
    for (int64_t k = all.begin[e]; k < all.begin[e + 1]; k++) {
      PlanarStage<Map>& s = all.stages[k];
      s.x = input;
      if (k > all.begin[e]) s.scale = &norms.scale[(k - 1) * all.c], s.shift = &norms.shift[(k - 1) * all.c];
      maps.push_back(new_map<Map>(x, sizes));
      Map* z = mutable_data<Map>(maps.back());
      bionas::planar_stage_forward<Map>(s, {z, image}, sum.data(), sum_sq.data());
      double *const m = norms.mean + k * all.c, *const v = norms.var + k * all.c;
      if (training) {
        norms.set_moments(k, sum.data(), sum_sq.data(), positions);
        statistics.update(k, m, v, positions);
      } else statistics.read(k, m, v);
      norms.set_affine(k);
      input = {z, image};
    }
    const int64_t last = all.begin[e + 1] - 1;
    Images<const Map> base{nullptr, 0};
    if (into[e].has_value()) base = images<Map>("into", *into[e], all.n, all.c, all.h, all.w);
    out.push_back(new_map<Map>(x, sizes));
    bionas::planar_sum<Map>({all.n, all.c, all.positions(), input, &norms.scale[last * all.c], &norms.shift[last * all.c],
                        keep_of(keep, e, all.edges(), all.n)},
                       base, {mutable_data<Map>(out.back()), image});
  }
  return {out, maps, mean, var};
}

template <class Map>
std::tuple<Tensor, Tensors, Tensors> edges_backward(
    const Tensors& grads,     // one per edge
    const Tensor& x,
    const Tensors& maps,      // of the stages, as the forward pass returned them
    const Tensors& moments, const Tensors& weights,
    const Tensors& feedback,  // like the weights
    const Tensors& affine, const Ints& plan, const Floats& eps, const Tensor& keep, bool training, bool weight_grads) {
  Edges<Map> all(x, weights, plan, int64_t(grads.size()));
  const Edges<Map> through(x, feedback, plan, int64_t(grads.size()));
  const int64_t stages = int64_t(all.stages.size()), c = all.c, image = c * all.positions();
  STD_TORCH_CHECK(int64_t(maps.size()) == stages, "maps: expected one for each stage");
  const Moments given(moments, stages, c);  // as the forward pass returned them
  Norms norms(affine, eps, const_cast<double*>(given.mean), const_cast<double*>(given.var), stages, c);
  Tensor grad_x = new_map<Map>(x, {all.n, x.size(1), all.h, all.w});
  Tensors weight_out, affine_out;
  for (std::size_t i = 0; weight_grads && i < weights.size(); i++)
    weight_out.push_back(torch::stable::new_empty(weights[i], std::vector<int64_t>(weights[i].sizes().begin(), weights[i].sizes().end())));
  for (int64_t i = 0; i < 2 * stages; i++) affine_out.push_back(torch::stable::new_empty(affine[i], {c}));
  std::vector<double> sum(std::max(c, x.size(1))), product_sum(sum.size());
  std::vector<float> a(c), b(c), d(c);
  const double positions = double(all.n * all.positions());

  // From Σ grad and Σ grad · z: the gradient of z is a · grad + b · z + d, and those of the affine parameters.
  const auto differentiate = [&](int64_t k) {
    float *gamma_grad = affine_out[2 * k].mutable_data_ptr<float>(), *beta_grad = affine_out[2 * k + 1].mutable_data_ptr<float>();
    for (int64_t i = 0; i < c; i++) {
      const double rstd = norms.rstd(k, i), mean = norms.mean[k * c + i], gamma = norms.gamma(k, i);
      const double normalised = rstd * (product_sum[i] - mean * sum[i]);
      const double slope = rstd * rstd * gamma * normalised / positions;
      a[i] = float(gamma * rstd);
      b[i] = training ? float(-slope) : 0.0f;
      d[i] = training ? float(slope * mean - rstd * gamma * sum[i] / positions) : 0.0f;
      gamma_grad[i] = float(normalised);
      beta_grad[i] = float(sum[i]);
    }
  };

  const bionas::Scratch<Map> between(stages > all.edges() ? all.n * image : 0);
  std::size_t weight = weights.size();
  for (int64_t e = all.edges(); e-- > 0;) {
    Images<const Map> grad = images<Map>("grads", grads[e], all.n, c, all.h, all.w);
    const float* keep_here = keep_of(keep, e, all.edges(), all.n);
    for (int64_t k = all.begin[e + 1]; k-- > all.begin[e];) {
      PlanarStage<Map>& s = all.stages[k];
      const bool first = k == all.begin[e];
      const Images<const Map> z = images<Map>("maps", maps[k], all.n, c, all.h, all.w);
      if (k + 1 == all.begin[e + 1])
        bionas::planar_sums<Map>({all.n, c, all.positions(), z, nullptr, nullptr, keep_here}, grad, sum.data(),
                            product_sum.data());
      differentiate(k);
      s.x = first ? all.x : images<Map>("maps", maps[k - 1], all.n, c, all.h, all.w);
      if (!first) {
        norms.set_affine(k - 1);
        s.scale = &norms.scale[(k - 1) * c];
        s.shift = &norms.shift[(k - 1) * c];
      }
      bionas::PlanarStageBackward<Map> g{};
      g.grad = grad, g.z = z, g.keep = k + 1 == all.begin[e + 1] ? keep_here : nullptr;
      g.a = a.data(), g.b = b.data(), g.d = d.data();
      g.depthwise_feedback = through.stages[k].depthwise;
      g.pointwise_feedback = through.stages[k].pointwise;
      if (weight_grads) {
        g.pointwise_grad = weight_out[--weight].mutable_data_ptr<float>();
        if (s.kernel) g.depthwise_grad = weight_out[--weight].mutable_data_ptr<float>();
      }
      if (first) g.grad_x = {mutable_data<Map>(grad_x), x.size(1) * all.positions()};
      else g.grad_x = {between.data, image}, g.sum = sum.data(), g.product_sum = product_sum.data();
      g.add = first && e + 1 < all.edges();
      bionas::planar_stage_backward(s, g);
      grad = {between.data, image};
    }
  }
  return {grad_x, weight_out, affine_out};
}

std::tuple<Tensors, Tensors, Tensor, Tensor> planar_edges(
    const Tensor& x, Tensors weights, Tensors affine, Tensors running, Ints plan, Floats eps, Floats momentum,
    OptionalTensors into, const Tensor& keep, bool training) {
  return with_maps(x, [&](auto number) {
    return edges_forward<decltype(number)>(x, weights, affine, running, plan, eps, momentum, into, keep, training);
  });
}

std::tuple<Tensor, Tensors, Tensors> planar_edges_backward(
    Tensors grads, const Tensor& x, Tensors maps, Tensors moments, Tensors weights, Tensors feedback, Tensors affine,
    Ints plan, Floats eps, const Tensor& keep, bool training, bool weight_grads) {
  return with_maps(x, [&](auto number) {
    return edges_backward<decltype(number)>(grads, x, maps, moments, weights, feedback, affine, plan, eps, keep,
                                            training, weight_grads);
  });
}

template <class Map>
bionas::PlanarPool<Map> make_pool(const Tensor& x, int64_t stride) {
  check_range("stride", stride, 1, 2);
  const Images<const Map> maps = first_images<Map>(x);
  return {x.size(0), x.size(1), x.size(2), x.size(3), stride, maps};
}

Tensor planar_pool(const Tensor& x, int64_t stride) {
  return with_maps(x, [&](auto number) {
    using Map = decltype(number);
    const bionas::PlanarPool<Map> p = make_pool<Map>(x, stride);
    Tensor z = new_map<Map>(x, {p.n, p.c, p.ho(), p.wo()});
    bionas::planar_pool(p, mutable_data<Map>(z));
    return z;
  });
}

Tensor planar_pool_backward(const Tensor& grad, const Tensor& x, int64_t stride) {
  return with_maps(x, [&](auto number) {
    using Map = decltype(number);
    const bionas::PlanarPool<Map> p = make_pool<Map>(x, stride);
    Tensor out = new_map<Map>(x, {p.n, p.c, p.h, p.w});
    bionas::planar_pool_backward(p, images<Map>("grad", grad, p.n, p.c, p.ho(), p.wo()), mutable_data<Map>(out));
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def(
      "planar_edges(Tensor x, Tensor[] weights, Tensor[] affine, Tensor(a!)[] running, int[] plan, float[] eps, "
      "float[] momentum, Tensor?[] into, Tensor keep, bool training) -> (Tensor[], Tensor[], Tensor, Tensor)");
  m.def(
      "planar_edges_backward(Tensor[] grads, Tensor x, Tensor[] maps, Tensor[] moments, Tensor[] weights, "
      "Tensor[] feedback, Tensor[] affine, int[] plan, float[] eps, Tensor keep, bool training, bool weight_grads) -> "
      "(Tensor, Tensor[], Tensor[])");
  m.def("planar_pool(Tensor x, int stride) -> Tensor");
  m.def("planar_pool_backward(Tensor grad, Tensor x, int stride) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("planar_edges", TORCH_BOX(&planar_edges));
  m.impl("planar_edges_backward", TORCH_BOX(&planar_edges_backward));
  m.impl("planar_pool", TORCH_BOX(&planar_pool));
  m.impl("planar_pool_backward", TORCH_BOX(&planar_pool_backward));
}
