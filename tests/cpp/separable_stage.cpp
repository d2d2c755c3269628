// Separable stages in memory of exactly their size, against plain loops in double precision.

#include "separable_stage.h"

#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

struct Shape {
  int64_t n, h, w, c;
  int stride;
  bool shared;
};

struct Kind {
  int kernel, dilation;
};

constexpr Kind kinds[] = {{3, 1}, {5, 1}, {3, 2}, {5, 2}, {3, 3}};
constexpr int branches = 5;

std::vector<float> numbers(int64_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = float(seed >> 8) * 0x1p-23f - 1.0f;
  }
  return values;
}

struct Case {
  explicit Case(const Shape& shape) : shape(shape) {
    const int64_t c = shape.c, inputs = shape.shared ? 1 : branches;
    s.n = shape.n;
    s.h = shape.h;
    s.w = shape.w;
    s.c = c;
    s.stride = shape.stride;
    s.ho = (s.h + s.stride - 1) / s.stride;
    s.wo = (s.w + s.stride - 1) / s.stride;
    s.branches = branches;
    s.shared = shape.shared;
    x = numbers(inputs * s.n * s.h * s.w * c, 1);
    scale = numbers(branches * c, 2);
    shift = numbers(branches * c, 3);
    s.x = x.data();
    s.scale = shape.shared ? nullptr : scale.data();
    s.shift = shape.shared ? nullptr : shift.data();
    const int64_t out = s.n * s.ho * s.wo * c;
    z.assign(branches * out, NAN);
    grad = numbers(2 * out, 4);
    for (int k = 0; k < branches; k++) {
      const int64_t taps = kinds[k].kernel * kinds[k].kernel;
      for (int part = 0; part < 2; part++) {
        depthwise.push_back(numbers(c * taps, 10 + 4 * k + part));
        pointwise.push_back(numbers(c * c, 12 + 4 * k + part));
      }
      depthwise_grad.emplace_back(c * taps, NAN);
      pointwise_grad.emplace_back(c * c, NAN);
    }
    for (int k = 0; k < branches; k++)
      branch.push_back({kinds[k].kernel, kinds[k].dilation, depthwise[2 * k].data(), pointwise[2 * k].data(),
                        depthwise[2 * k + 1].data(), pointwise[2 * k + 1].data(), depthwise_grad[k].data(),
                        pointwise_grad[k].data(), grad.data() + (k % 2) * out});
    s.branch = branch.data();
  }

  // ReLU of the input, 0 outside.
  double seen(int k, int64_t n, int64_t y, int64_t x_, int64_t i) const {
    if (y < 0 || x_ < 0 || y >= s.h || x_ >= s.w) return 0;
    double value = x[(((s.shared ? 0 : k * s.n) + n) * s.h + y) * s.w * s.c + x_ * s.c + i];
    if (!s.shared) value = value * scale[k * s.c + i] + shift[k * s.c + i];
    return value > 0 ? value : 0;
  }

  double middle(int k, int64_t n, int64_t y, int64_t x_, int64_t i) const {
    const int size = kinds[k].kernel, d = kinds[k].dilation, pad = d * (size / 2);
    double sum = 0;
    for (int ky = 0; ky < size; ky++)
      for (int kx = 0; kx < size; kx++)
        sum += depthwise[2 * k][(i * size + ky) * size + kx] *
               seen(k, n, y * s.stride + ky * d - pad, x_ * s.stride + kx * d - pad, i);
    return sum;
  }

  int64_t at(int k, int64_t n, int64_t y, int64_t x_, int64_t i) const {
    return (((k * s.n + n) * s.ho + y) * s.wo + x_) * s.c + i;
  }

  Shape shape;
  Stage<float> s{};
  std::vector<float> x, scale, shift, z, grad;
  std::vector<std::vector<float>> depthwise, pointwise, depthwise_grad, pointwise_grad;
  std::vector<Branch> branch;
};

bool near(double actual, double expected) { return std::fabs(actual - expected) <= 1e-3 * (1 + std::fabs(expected)); }

void run(const Shape& shape) {
  Case t(shape);
  const Stage<float>& s = t.s;
  const int64_t c = s.c;
  std::vector<double> sum(branches * c, NAN), sum_sq(branches * c, NAN);
  stage_forward(s, {t.z.data(), sum.data(), sum_sq.data()});
  for (int k = 0; k < branches; k++) {
    std::vector<double> total(c);
    for (int64_t n = 0; n < s.n; n++)
      for (int64_t y = 0; y < s.ho; y++)
        for (int64_t x = 0; x < s.wo; x++)
          for (int64_t o = 0; o < c; o++) {
            double z = 0;
            for (int64_t i = 0; i < c; i++) z += t.pointwise[2 * k][o * c + i] * t.middle(k, n, y, x, i);
            CHECK(near(t.z[t.at(k, n, y, x, o)], z));
            total[o] += z;
          }
    for (int64_t o = 0; o < c; o++) CHECK(near(sum[k * c + o], total[o]));
  }

  // The gradient of z is a · grad + b · z + d with a = 0.5, b = -0.25, d = 0.125.
  const std::vector<float> a(branches * c, 0.5f), b(branches * c, -0.25f), d(branches * c, 0.125f);
  std::vector<float> grad_x(t.x.size(), NAN);
  std::vector<double> grad_sum(branches * c, NAN), product_sum(branches * c, NAN);
  stage_backward(s, {t.z.data(), a.data(), b.data(), d.data(), grad_x.data(), s.shared ? nullptr : grad_sum.data(),
                     s.shared ? nullptr : product_sum.data()});
  std::vector<double> expected(t.x.size());
  for (int k = 0; k < branches; k++) {
    const int size = kinds[k].kernel, dilation = kinds[k].dilation, pad = dilation * (size / 2);
    std::vector<double> pointwise(c * c), depthwise(c * size * size);
    for (int64_t n = 0; n < s.n; n++)
      for (int64_t y = 0; y < s.ho; y++)
        for (int64_t x = 0; x < s.wo; x++) {
          std::vector<double> delta(c), error(c);
          for (int64_t o = 0; o < c; o++)
            delta[o] = 0.5 * t.branch[k].grad[t.at(0, n, y, x, o)] - 0.25 * t.z[t.at(k, n, y, x, o)] + 0.125;
          for (int64_t i = 0; i < c; i++) {
            const double middle = t.middle(k, n, y, x, i);
            for (int64_t o = 0; o < c; o++) {
              error[i] += t.pointwise[2 * k + 1][o * c + i] * delta[o];
              pointwise[o * c + i] += delta[o] * middle;
            }
            for (int ky = 0; ky < size; ky++)
              for (int kx = 0; kx < size; kx++) {
                const int64_t yy = y * s.stride + ky * dilation - pad, xx = x * s.stride + kx * dilation - pad;
                const double seen = t.seen(k, n, yy, xx, i);
                depthwise[(i * size + ky) * size + kx] += error[i] * seen;
                if (seen > 0)
                  expected[(((s.shared ? 0 : k * s.n) + n) * s.h + yy) * s.w * c + xx * c + i] +=
                      error[i] * t.depthwise[2 * k + 1][(i * size + ky) * size + kx];
              }
          }
        }
    for (std::size_t i = 0; i < pointwise.size(); i++) CHECK(near(t.pointwise_grad[k][i], pointwise[i]));
    for (std::size_t i = 0; i < depthwise.size(); i++) CHECK(near(t.depthwise_grad[k][i], depthwise[i]));
  }
  for (std::size_t i = 0; i < expected.size(); i++) CHECK(near(grad_x[i], expected[i]));
  for (int k = 0; !s.shared && k < branches; k++)
    for (int64_t i = 0; i < c; i++) {
      double sum = 0, product = 0;
      for (int64_t n = 0; n < s.n; n++)
        for (int64_t y = 0; y < s.h; y++)
          for (int64_t x = 0; x < s.w; x++) {
            const double error = expected[(((k * s.n + n) * s.h + y) * s.w + x) * c + i];
            sum += error;
            product += error * t.seen(k, n, y, x, i);
          }
      CHECK(near(grad_sum[k * c + i], sum));
      CHECK(near(product_sum[k * c + i], product));
    }
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (const Shape& shape : {Shape{1, 1, 1, 16, 1, true}, Shape{5, 2, 2, 16, 1, true}, Shape{2, 5, 9, 16, 1, true},
                               Shape{4, 3, 5, 16, 1, false}, Shape{3, 7, 5, 16, 2, true}, Shape{1, 2, 18, 32, 1, false},
                               // Rows of blocks of every size, at either stride, and all numbers of channels.
                               Shape{1, 3, 33, 16, 2, true}, Shape{2, 3, 20, 32, 1, true}, Shape{1, 4, 18, 48, 2, true},
                               Shape{1, 3, 8, 64, 1, false}, Shape{1, 3, 17, 64, 2, true}})
      run(shape);
  }
}
