// All candidates of a state in memory of exactly their size: the sums against double precision, and the rest against
// itself with another number of branches at a time, for the stages and the sum have programs of their own.

#include "separable_edges.h"

#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

struct Shape {
  int64_t n, h, w, c;
  int stride;
  int64_t images = 1;
};

constexpr int branches = 5, twice = 2, edges = 4;  // nothing belongs to the last edge
constexpr int kernels[] = {3, 5, 3, 5, 3}, dilations[] = {1, 1, 2, 2, 1};
constexpr int64_t edge[] = {0, 2, 0, 1, 2};
constexpr double mixing[] = {0.5, -1.25, 2.0, 0.75, 0.125};

std::vector<float> numbers(int64_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = float(seed >> 8) * 0x1p-23f - 1.0f;
  }
  return values;
}

float number(float value) { return value; }
float number(Narrow value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
void set(float& to, float value) { to = value; }
void set(Narrow& to, float value) { to = narrow(value); }

struct Result {
  std::vector<float> z, grad_x, weights;
  std::vector<std::vector<float>> out;
  std::vector<double> mean, var, grad_mixing;
};

struct Layers {
  Layers(int count, int64_t c, uint32_t seed) {
    for (int k = 0; k < count; k++) {
      const int64_t taps = kernels[k] * kernels[k];
      for (int part = 0; part < 2; part++) {
        depthwise.push_back(numbers(c * taps, seed + 4 * k + part));
        pointwise.push_back(numbers(c * c, seed + 4 * k + 2 + part));
      }
      depthwise_grad.emplace_back(c * taps, NAN);
      pointwise_grad.emplace_back(c * c, NAN);
    }
    for (int k = 0; k < count; k++)
      branch.push_back({kernels[k], dilations[k], depthwise[2 * k].data(), pointwise[2 * k].data(),
                        depthwise[2 * k + 1].data(), pointwise[2 * k + 1].data(), depthwise_grad[k].data(),
                        pointwise_grad[k].data(), nullptr});
  }
  void append_grads(std::vector<float>& all) const {
    for (const auto& grads : {depthwise_grad, pointwise_grad})
      for (const auto& one : grads) all.insert(all.end(), one.begin(), one.end());
  }
  std::vector<std::vector<float>> depthwise, pointwise, depthwise_grad, pointwise_grad;
  std::vector<Branch> branch;
};

template <class Map>
Result run(const Shape& shape, int64_t together, bool with_into) {
  SeparableEdges<Map> e{};
  e.n = shape.n, e.h = shape.h, e.w = shape.w, e.c = shape.c, e.stride = shape.stride, e.images = shape.images;
  e.branches = branches, e.twice = twice, e.edges = edges, e.edge = edge, e.mixing = mixing, e.together = together;
  const Layers first(branches, e.c, 100), second(twice, e.c, 200);
  e.first = first.branch.data();
  e.second = second.branch.data();
  const std::vector<float> wide = numbers(e.n * e.h * e.w * e.c, 1);
  std::vector<Map> x(wide.size()), z(branches * e.map());
  for (std::size_t i = 0; i < x.size(); i++) set(x[i], wide[i]);
  for (Map& value : z) set(value, NAN);
  e.x = x.data();
  Result r;
  r.mean.assign((twice + branches) * e.c, NAN);
  r.var = r.mean;
  e.mean = r.mean.data();
  e.var = r.var.data();
  e.training = true;
  std::vector<std::vector<float>> into, grads;
  std::vector<const float*> base, grad;
  std::vector<float*> out;
  for (int i = 0; i < edges; i++) {
    into.push_back(numbers(e.map(), 10 + i));
    grads.push_back(numbers(e.map(), 20 + i));
    r.out.emplace_back(e.map(), NAN);
  }
  for (int i = 0; i < edges; i++) {
    base.push_back(into[i].data());
    grad.push_back(grads[i].data());
    out.push_back(r.out[i].data());
  }
  separable_edges_forward(e, {z.data(), with_into ? base.data() : nullptr, out.data()});
  for (Map value : z) r.z.push_back(number(value));

  const int64_t positions = e.map() / e.c;
  std::vector<std::vector<double>> expected;
  for (int i = 0; i < edges; i++) {
    expected.emplace_back(e.map());
    for (int64_t p = 0; with_into && p < e.map(); p++) expected[i][p] = into[i][p];
  }
  std::vector<double> grad_mixing(branches);
  for (int k = 0; k < branches; k++)
    for (int64_t j = 0; j < e.c; j++) {
      const float* z = r.z.data() + k * e.map() + j;
      // Over the same channel of all images, as offsets from this one.
      double mean = 0, var = 0;
      const auto each = [&](const auto& body) {
        for (int64_t p = 0; p < positions; p++)
          for (int64_t l = j % e.width(); l < e.c; l += e.width()) body(z[p * e.c + l - j]);
      };
      each([&](double value) { mean += value / e.positions(); });
      each([&](double value) { var += (value - mean) * (value - mean) / e.positions(); });
      // Those of narrow maps are the moments before rounding.
      if (sizeof(Map) < sizeof(float)) mean = r.mean[(twice + k) * e.c + j], var = r.var[(twice + k) * e.c + j];
      for (int64_t p = 0; p < positions; p++) {
        const double normalised = (z[p * e.c] - mean) / std::sqrt(var + 1e-5);
        expected[edge[k]][p * e.c + j] += mixing[k] * normalised;
        grad_mixing[k] += normalised * grads[edge[k]][p * e.c + j];
      }
    }
  for (int i = 0; i < edges; i++)
    for (int64_t p = 0; p < e.map(); p++) CHECK(std::fabs(r.out[i][p] - expected[i][p]) < 1e-2);

  r.grad_mixing.assign(branches, NAN);
  r.grad_x.assign(x.size(), NAN);
  separable_edges_backward(e, {z.data(), grad.data(), r.grad_mixing.data(), r.grad_x.data()});
  for (int k = 0; k < branches; k++) CHECK(std::fabs(r.grad_mixing[k] - grad_mixing[k]) < 1e-2 * positions);
  const std::vector<double> both = r.grad_mixing;
  separable_edges_backward(e, {z.data(), grad.data(), r.grad_mixing.data(), nullptr});
  CHECK(both == r.grad_mixing);
  first.append_grads(r.weights);
  second.append_grads(r.weights);
  return r;
}

template <class T>
bool close(const std::vector<T>& a, const std::vector<T>& b) {
  double largest = 0, error = 0;
  for (std::size_t i = 0; i < a.size(); i++) {
    largest = std::fmax(largest, std::fabs(double(a[i])));
    error = std::fmax(error, std::fabs(double(a[i]) - double(b[i])));
  }
  return a.size() == b.size() && std::isfinite(largest) && error <= 1e-4 * largest;
}

template <class Map>
void check_all() {
  for (const Shape& shape : {Shape{2, 1, 2, 16, 1}, Shape{3, 5, 9, 16, 1}, Shape{2, 7, 5, 16, 2}, Shape{1, 4, 6, 32, 2},
                             Shape{2, 5, 3, 16, 1, 4}, Shape{2, 5, 3, 16, 2, 2}})
    for (bool into : {true, false}) {
      const Result all = run<Map>(shape, int64_t{1} << 30, into), single = run<Map>(shape, 1, into);
      CHECK(close(all.z, single.z) && close(all.grad_x, single.grad_x) && close(all.weights, single.weights));
      CHECK(close(all.mean, single.mean) && close(all.var, single.var));
      CHECK(close(all.grad_mixing, single.grad_mixing));
      for (int i = 0; i < edges; i++) CHECK(into || i == 3 || close(all.out[i], single.out[i]));
    }
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    check_all<float>();
    check_all<Narrow>();
  }
}
