// The mixed sum, with and without batch normalisation of its maps, as operators of torch; see library.cpp.

#include <cmath>

#include "arguments.h"
#include "cpu/images.h"
#include "cpu/mixed_sum.h"

namespace {

using namespace bionas::arguments;

// The common arguments of all operators, converted for the kernels.
class Sum {
 public:
  Sum(const Tensors& stacks,  // [K_i, N, H, W, C]; terms index the maps of all stacks in order
      const Ints& terms)      // the numbers of TermsRecord
      : record_(terms) {
    const std::vector<bionas::AnyMap> maps = each_map("maps", stacks);
    like_ = stacks[0];
    sum_.c = like_.size(4);
    sum_.p = like_.size(1) * like_.size(2) * like_.size(3);
    sum_.edges = int(record_.count);
    sum_.terms = int(record_.edges.size());
    check_each("index", record_.index, 0, int64_t(maps.size()) - 1);
    for (int64_t i : record_.index) terms_.push_back(maps[i]);
    sum_.map = terms_.data();
    sum_.edge = record_.edges.data();
  }
  Sum(const Sum&) = delete;
  Sum& operator=(const Sum&) = delete;

  // out[e] = Σ_{t of e} weight[t] · map[t] + offset[e] + into[e]
  Tensors forward(const float* weight, const float* offset, const OptionalTensors& into) const {
    const std::vector<const float*> base = bases(into);
    Tensors result;
    std::vector<float*> out;
    for (int e = 0; e < sum_.edges; e++) {
      result.push_back(new_map(like_, {like_.size(1), like_.size(2), like_.size(3), like_.size(4)}));
      out.push_back(result[e].mutable_data_ptr<float>());
    }
    bionas::mixed_sum_forward(sum_, weight, offset, base.data(), out.data());
    return result;
  }

  std::vector<const float*> bases(const OptionalTensors& into) const {
    STD_TORCH_CHECK(int64_t(into.size()) == sum_.edges, "into: expected one for each sum");
    return maps_of("into", into, size());
  }

  std::vector<const float*> gradients(const Tensors& grads) const {
    STD_TORCH_CHECK(int64_t(grads.size()) == sum_.edges, "grads: expected one for each sum");
    return maps_of("grads", grads, size());
  }

  // Σ grad of every edge and Σ grad · map of every term, [E, C] and [T, C].
  void backward(const std::vector<const float*>& grads, double* grad_sum, double* product_sum) const {
    bionas::mixed_sum_backward(sum_, grads.data(), grad_sum, product_sum);
  }

  int64_t terms() const { return sum_.terms; }
  int64_t edges() const { return sum_.edges; }
  int64_t channels() const { return sum_.c; }
  int64_t positions() const { return sum_.p; }
  int64_t map(int64_t term) const { return record_.index[term]; }
  int64_t edge(int64_t term) const { return record_.edges[term]; }

 private:
  int64_t size() const { return sum_.p * sum_.c; }

  TermsRecord record_;
  bionas::MixedSum sum_{};
  Tensor like_;
  std::vector<bionas::AnyMap> terms_;
};

Tensors mixed_sum(
    Tensors maps, Ints terms,
    const Tensor& weight,  // [T, C]
    const Tensor& offset,  // [E, C]
    OptionalTensors into) {
  const Sum sum(maps, terms);
  check_rows("weight", weight, sum.terms(), sum.channels());
  check_rows("offset", offset, sum.edges(), sum.channels());
  return sum.forward(weight.const_data_ptr<float>(), offset.const_data_ptr<float>(), into);
}

std::tuple<Tensor, Tensor> mixed_sum_backward(Tensors grads, Tensors maps, Ints terms) {
  const Sum sum(maps, terms);
  const std::vector<const float*> incoming = sum.gradients(grads);
  Tensor grad_sum = torch::stable::new_empty(maps[0], {sum.edges(), sum.channels()}, ScalarType::Double);
  Tensor product_sum = torch::stable::new_empty(maps[0], {sum.terms(), sum.channels()}, ScalarType::Double);
  sum.backward(incoming, grad_sum.mutable_data_ptr<double>(), product_sum.mutable_data_ptr<double>());
  return {grad_sum, product_sum};
}

// Mean and 1 / √(var + ε) of every map, [M, C]; maps after the first M are not normalised.
class Normalisation {
 public:
  Normalisation(const Tensors& moments, int64_t channels)
      : rows(count(moments)), c_(channels), moments_(moments, rows, channels) {}
  double mean(int64_t map, int64_t j) const { return map < rows ? moments_.mean[map * c_ + j] : 0; }
  double rstd(int64_t map, int64_t j) const {
    return map < rows ? 1 / std::sqrt(moments_.var[map * c_ + j] + bionas::variance_epsilon) : 1;
  }

  const int64_t rows;

 private:
  static int64_t count(const Tensors& moments) {
    return !moments.empty() && moments[0].dim() == 2 ? moments[0].size(0) : 0;
  }

  int64_t c_;
  Moments moments_;
};

const double* factors_of(const Tensor& factors, const Sum& sum) {
  check("factors", factors, ScalarType::Double);
  STD_TORCH_CHECK(int64_t(factors.numel()) == sum.terms(), "factors: expected one for each term");
  return factors.const_data_ptr<double>();
}

std::tuple<Tensors, Tensor, Tensor> normalised_sum(
    Tensors maps, Ints terms,
    const Tensor& factors,  // float64 [T]
    Tensors sums,           // Σ z and Σ z² of the M normalised maps, float64 [M, C]
    Tensors moments,        // of these maps, [M, C]; none: the moments of this batch
    OptionalTensors into, int64_t images) {
  const Sum sum(maps, terms);
  const int64_t c = sum.channels(), width = c / checked_images(images, c);
  const double* factor = factors_of(factors, sum);
  STD_TORCH_CHECK(sums.size() == 2, "sums: expected total and squares");
  const Tensor &total = sums[0], &squares = sums[1];
  const int64_t rows = total.dim() == 2 ? total.size(0) : 0;
  for (const Tensor& each : sums) check_rows("total, squares", each, rows, c, ScalarType::Double);
  sum.bases(into);  // before the arithmetic
  Tensor mean = torch::stable::new_empty(total, {rows, c});
  Tensor var = torch::stable::new_empty(total, {rows, c});
  double *to_mean = mean.mutable_data_ptr<double>(), *to_var = var.mutable_data_ptr<double>();
  if (!moments.empty()) {
    const Moments given(moments, rows, c);
    std::copy_n(given.mean, mean.numel(), to_mean);
    std::copy_n(given.var, var.numel(), to_var);
  } else {
    const double positions = double(sum.positions() * images);
    std::copy_n(total.const_data_ptr<double>(), mean.numel(), to_mean);
    std::copy_n(squares.const_data_ptr<double>(), var.numel(), to_var);
    for (double* own : {to_mean, to_var}) bionas::add_up_images(own, rows, images, width);
    for (int64_t i = 0; i < int64_t(mean.numel()); i++) {
      to_mean[i] /= positions;
      const double spread = to_var[i] / positions - to_mean[i] * to_mean[i];
      to_var[i] = spread < 0 ? 0 : spread;  // propagates NaN
    }
  }
  const Normalisation normal({mean, var}, c);
  std::vector<float> weight(sum.terms() * c);
  std::vector<double> offset(sum.edges() * c);
  for (int64_t t = 0; t < sum.terms(); t++)
    for (int64_t j = 0; j < c; j++) {
      const double scale = factor[t] * normal.rstd(sum.map(t), j);
      weight[t * c + j] = float(scale);
      offset[sum.edge(t) * c + j] -= scale * normal.mean(sum.map(t), j);
    }
  const std::vector<float> rounded(offset.begin(), offset.end());
  return {sum.forward(weight.data(), rounded.data(), into), mean, var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> normalised_sum_backward(
    Tensors grads, Tensors maps, Ints record, const Tensor& factors, Tensors moments, bool training,
    int64_t images) {
  const Sum sum(maps, record);
  const int64_t c = sum.channels(), terms = sum.terms(), width = c / checked_images(images, c);
  const double* factor = factors_of(factors, sum);
  const Normalisation normal(moments, c);
  const std::vector<const float*> incoming = sum.gradients(grads);
  std::vector<double> grad_sum(sum.edges() * c), products(terms * c);
  sum.backward(incoming, grad_sum.data(), products.data());
  bionas::add_up_images(grad_sum.data(), sum.edges(), images, width);
  bionas::add_up_images(products.data(), terms, images, width);
  Tensor grad_factors = torch::stable::new_empty(factors, {terms});
  Tensor a = new_map(maps[0], {terms, c});
  Tensor b = new_map(maps[0], {normal.rows, c});
  Tensor d = new_map(maps[0], {normal.rows, c});
  // Σ of the gradient of the normalised map, and Σ of its product with that map, for each map.
  std::vector<double> map_sum(normal.rows * c), map_products(normal.rows * c);
  for (int64_t t = 0; t < terms; t++) {
    const int64_t k = sum.map(t);
    double& total = grad_factors.mutable_data_ptr<double>()[t] = 0;
    for (int64_t j = 0; j < c; j++) {
      const double own = grad_sum[sum.edge(t) * c + j], rstd = normal.rstd(k, j);
      const double normalised = rstd * (products[t * c + j] - normal.mean(k, j) * own);
      if (j < width) total += normalised;
      a.mutable_data_ptr<float>()[t * c + j] = float(factor[t] * rstd);
      if (k >= normal.rows) continue;
      map_sum[k * c + j] += factor[t] * own;
      map_products[k * c + j] += factor[t] * normalised;
    }
  }
  const double positions = double(sum.positions() * images);
  for (int64_t k = 0; k < normal.rows; k++)
    for (int64_t j = 0; j < c; j++) {
      const int64_t i = k * c + j;
      const double rstd = normal.rstd(k, j), slope = rstd * rstd * map_products[i] / positions;
      b.mutable_data_ptr<float>()[i] = training ? float(-slope) : 0.0f;
      d.mutable_data_ptr<float>()[i] =
          training ? float(slope * normal.mean(k, j) - rstd * map_sum[i] / positions) : 0.0f;
    }
  return {grad_factors, a, b, d};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def("mixed_sum(Tensor[] maps, int[] terms, Tensor weight, Tensor offset, Tensor?[] into) -> Tensor[]");
  m.def("mixed_sum_backward(Tensor[] grads, Tensor[] maps, int[] terms) -> (Tensor, Tensor)");
  m.def(
      "normalised_sum(Tensor[] maps, int[] terms, Tensor factors, Tensor[] sums, Tensor[] moments, Tensor?[] into, "
      "int images=1) -> (Tensor[], Tensor, Tensor)");
  m.def(
      "normalised_sum_backward(Tensor[] grads, Tensor[] maps, int[] terms, Tensor factors, Tensor[] moments, "
      "bool training, int images=1) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) {
  m.impl("mixed_sum", TORCH_BOX(&mixed_sum));
  m.impl("mixed_sum_backward", TORCH_BOX(&mixed_sum_backward));
  m.impl("normalised_sum", TORCH_BOX(&normalised_sum));
  m.impl("normalised_sum_backward", TORCH_BOX(&normalised_sum_backward));
}
