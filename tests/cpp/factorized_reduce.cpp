// Factorized reductions in memory of exactly its size, against plain loops. Small whole numbers: floats are exact.

#include "factorized_reduce.h"

#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

std::vector<float> numbers(int64_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = float(int(seed >> 24) % 5 - 2);
  }
  return values;
}

struct Case {
  Case(int64_t n, int64_t h, int64_t w, int64_t c, int64_t own)
      : half(own - own / 2),
        size(n * ((h + 1) / 2) * ((w + 1) / 2) * c),
        x(numbers(n * h * w * c, 1)),
        first(numbers(count * half * own, 2)),
        second(numbers(count * (own - half) * own, 3)),
        grad(numbers(2 * size, 4)),
        a(numbers(count * c, 5)),
        b(numbers(count * c, 6)),
        d(numbers(count * c, 7)),
        z(count * size, NAN),
        s{n, h, w, c, (h + 1) / 2, (w + 1) / 2, count, own, x.data(), first.data(), second.data()} {}

  static constexpr int64_t count = 3;

  // Where in x the grid sees position `at` of the output; -1 outside.
  int64_t place(int64_t at, int grid) const {
    const int64_t y = 2 * (at / s.wo % s.ho) + grid, column = 2 * (at % s.wo) + grid;
    return y < s.h && column < s.w ? ((at / (s.wo * s.ho) * s.h + y) * s.w + column) * s.c : -1;
  }
  const float* row(int64_t r, int64_t i) const {
    return i < half ? &first[(r * half + i) * s.own] : &second[(r * (s.own - half) + i - half) * s.own];
  }

  void forward() {
    std::vector<double> sum(count * s.c, NAN), sum_sq(count * s.c, NAN);
    factorized_reduce_forward(s, z.data(), sum.data(), sum_sq.data());
    for (int64_t r = 0; r < count; r++)
      for (int64_t i = 0; i < s.c; i++) {
        double total = 0, squares = 0;
        for (int64_t at = 0; at < size / s.c; at++) {
          double expected = 0;
          const int64_t from = place(at, i >= half);
          for (int64_t j = 0; i < s.own && from >= 0 && j < s.own; j++)
            expected += row(r, i)[j] * std::fmax(x[from + j], 0.0f);
          CHECK(z[r * size + at * s.c + i] == expected);
          total += expected;
          squares += expected * expected;
        }
        CHECK(sum[r * s.c + i] == total);
        CHECK(sum_sq[r * s.c + i] == squares);
      }
  }

  // Behind forward().
  void backward(bool weights) {
    const float* grads[count] = {grad.data(), grad.data() + size, grad.data()};
    std::vector<float> down(x.size(), NAN), first_grad(first.size(), NAN), second_grad(second.size(), NAN);
    factorized_reduce_backward(s, {grads, z.data(), a.data(), b.data(), d.data(), down.data(),
                            weights ? first_grad.data() : nullptr, weights ? second_grad.data() : nullptr});
    std::vector<double> error(x.size()), matrices(count * s.own * s.own);
    for (int64_t r = 0; r < count; r++)
      for (int64_t at = 0; at < size / s.c; at++)
        for (int64_t i = 0; i < s.own; i++) {
          const int64_t from = place(at, i >= half), k = at * s.c + i, ri = r * s.c + i;
          if (from < 0) continue;
          const double delta = a[ri] * grads[r][k] + b[ri] * z[r * size + k] + d[ri];
          for (int64_t j = 0; j < s.own; j++)
            if (x[from + j] > 0) {
              error[from + j] += delta * row(r, i)[j];
              matrices[(r * s.own + i) * s.own + j] += delta * x[from + j];
            }
        }
    for (std::size_t i = 0; i < x.size(); i++) CHECK(down[i] == error[i]);
    for (int64_t r = 0; weights && r < count; r++)
      for (int64_t i = 0; i < s.own; i++)
        for (int64_t j = 0; j < s.own; j++)
          CHECK((i < half ? first_grad[(r * half + i) * s.own + j]
                          : second_grad[(r * (s.own - half) + i - half) * s.own + j]) ==
                matrices[(r * s.own + i) * s.own + j]);
  }

  int64_t half, size;
  std::vector<float> x, first, second, grad, a, b, d, z;
  FactorizedReduce<float> s;
};

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (int64_t h : {1, 4, 7})
      for (int64_t w : {1, 6, 129})
        for (int64_t c : {16, 48})
          for (int64_t own : {int64_t{1}, c - 3, c}) {
            Case one(2, h, w, c, own);
            one.forward();
            one.backward(true);
            one.backward(false);
          }
  }
}
