// A planar stage in memory of exactly its size: forward and backward against plain loops, on odd sizes.

#include "planar_stage.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "check.h"

using namespace bionas;

namespace {

std::vector<float> numbers(std::size_t count, int start) {
  std::vector<float> out(count);
  for (std::size_t i = 0; i < count; i++) out[i] = float((int(i) * 7 + start) % 11 - 5) / 4;
  return out;
}

template <class Map>
bool near(double a, double b) {
  return std::fabs(a - b) < (std::is_same_v<Map, Narrow> ? 2e-2 : 1e-3) * (1 + std::fabs(b));
}

// In a type of maps; all the numbers above fit.
template <class Map>
std::vector<Map> in(const std::vector<float>& values) {
  std::vector<Map> out(values.size());
  for (std::size_t i = 0; i < values.size(); i++) assign(out[i], values[i]);
  return out;
}

struct Case {
  int64_t n, h, w, c_in, c_out;
  int kernel;
  int64_t dilation;
};

template <class Map>
void run(const Case& a) {
  const int64_t positions = a.h * a.w, taps = a.kernel * a.kernel, half = a.kernel / 2;
  const auto x = numbers(a.n * a.c_in * positions, 1), depthwise = numbers(a.c_in * taps, 2),
             pointwise = numbers(a.c_out * a.c_in, 3), grad = numbers(a.n * a.c_out * positions, 4),
             b_depthwise = numbers(a.c_in * taps, 5), b_pointwise = numbers(a.c_out * a.c_in, 6);
  const auto x_map = in<Map>(x), grad_map = in<Map>(grad);
  PlanarStage<Map> s{};
  s.n = a.n, s.h = a.h, s.w = a.w, s.c_in = a.c_in, s.c_out = a.c_out, s.kernel = a.kernel, s.dilation = a.dilation;
  s.depthwise = depthwise.data(), s.pointwise = pointwise.data(), s.x = {x_map.data(), a.c_in * positions};

  // The depthwise output, and where a tap of it reads, or -1.
  const auto from = [&](int64_t p, int64_t t) {
    const int64_t y = p / a.w + (t / a.kernel - half) * a.dilation, xx = p % a.w + (t % a.kernel - half) * a.dilation;
    return y < 0 || xx < 0 || y >= a.h || xx >= a.w ? -1 : y * a.w + xx;
  };
  std::vector<double> middle(x.size()), z(grad.size());
  for (std::size_t i = 0; i < x.size(); i++) {
    const int64_t p = i % positions, c = i / positions % a.c_in, start = i - p;
    if (!a.kernel) middle[i] = std::max(0.0f, x[i]);
    for (int64_t t = 0; t < taps; t++)
      if (from(p, t) >= 0) middle[i] += depthwise[c * taps + t] * std::max(0.0f, x[start + from(p, t)]);
  }
  for (std::size_t i = 0; i < z.size(); i++) {
    const int64_t p = i % positions, o = i / positions % a.c_out, image = i / positions / a.c_out;
    for (int64_t c = 0; c < a.c_in; c++)
      z[i] += pointwise[o * a.c_in + c] * middle[(image * a.c_in + c) * positions + p];
  }
  std::vector<Map> out = in<Map>(std::vector<float>(z.size(), NAN));
  std::vector<double> sum(a.c_out, NAN), sum_sq(a.c_out, NAN);
  planar_stage_forward<Map>(s, {out.data(), a.c_out * positions}, sum.data(), sum_sq.data());
  double total = 0, all = 0;
  for (std::size_t i = 0; i < z.size(); i++) {
    CHECK(near<Map>(wide(out[i]), z[i]));
    total += z[i] * z[i];
  }
  for (double value : sum_sq) all += value;
  CHECK(near<float>(all, total));  // of the map before it is rounded

  const std::vector<float> one(a.c_out, 1.0f), zero(a.c_out, 0.0f);
  std::vector<Map> down = in<Map>(std::vector<float>(x.size(), NAN));
  std::vector<float> depthwise_grad(depthwise.size(), NAN), pointwise_grad(pointwise.size(), NAN);
  PlanarStageBackward<Map> g{};
  g.grad = {grad_map.data(), a.c_out * positions}, g.z = {out.data(), a.c_out * positions};
  g.a = one.data(), g.b = zero.data(), g.d = zero.data();
  g.depthwise_feedback = b_depthwise.data(), g.pointwise_feedback = b_pointwise.data();
  g.depthwise_grad = depthwise_grad.data(), g.pointwise_grad = pointwise_grad.data();
  g.grad_x = {down.data(), a.c_in * positions};
  planar_stage_backward(s, g);
  std::vector<double> error(x.size()), expected(x.size()), of_depthwise(depthwise.size()), of_pointwise(pointwise.size());
  for (int64_t image = 0; image < a.n; image++)
    for (int64_t c = 0; c < a.c_in; c++)
      for (int64_t p = 0; p < positions; p++) {
        const int64_t start = (image * a.c_in + c) * positions;
        for (int64_t o = 0; o < a.c_out; o++) {
          const double d = grad[(image * a.c_out + o) * positions + p];
          error[start + p] += b_pointwise[o * a.c_in + c] * d;
          of_pointwise[o * a.c_in + c] += d * middle[start + p];
        }
        if (!a.kernel) expected[start + p] = error[start + p];
        for (int64_t t = 0; t < taps; t++) {
          const int64_t q = from(p, t);
          if (q < 0) continue;
          expected[start + q] += b_depthwise[c * taps + t] * error[start + p];
          of_depthwise[c * taps + t] += error[start + p] * std::max(0.0f, x[start + q]);
        }
      }
  for (std::size_t i = 0; i < x.size(); i++) CHECK(near<Map>(wide(down[i]), x[i] > 0 ? expected[i] : 0));
  for (std::size_t i = 0; i < pointwise.size(); i++) CHECK(near<float>(pointwise_grad[i], of_pointwise[i]));
  for (std::size_t i = 0; i < depthwise.size(); i++) CHECK(near<float>(depthwise_grad[i], of_depthwise[i]));
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (const Case& a : {Case{4, 5, 7, 3, 3, 3, 1}, {2, 1, 1, 1, 1, 5, 2}, {3, 9, 8, 7, 7, 3, 2}, {4, 4, 17, 13, 6, 0, 1},
                          {2, 3, 2, 2, 2, 7, 3}, {4, 8, 8, 2, 2, 5, 1}}) {
      run<float>(a);
      run<Narrow>(a);
    }
  }
}
