// Hebbian activities and moves in memory of exactly their size, against plain loops.

#include "hebbian.h"

#include <algorithm>
#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

void run(int64_t n, int64_t each, int64_t groups, int64_t p, Activity activity, Decay decay, bool norms) {
  const int64_t k = each * groups;
  std::vector<float> u(n * k * p), norm(n * groups * p, 2.0f), y(n * k * p, NAN);
  for (int64_t i = 0; i < n * k * p; i++) u[i] = float((i * 7) % 11 - 5) / 2;
  std::vector<double> total(k, NAN), sums(k);
  const bool made = activity != Activity::linear || norms;
  const HebbianActivity a{n, k, p, groups, activity, decay, 0.5f, u.data(), nullptr, norms ? norm.data() : nullptr,
                          made ? y.data() : nullptr};
  hebbian_activity(a, decay == Decay::none ? nullptr : total.data());
  for (int64_t map = 0; map < n * groups; map++)
    for (int64_t i = 0; i < p; i++) {
      const float* x = u.data() + map * each * p + i;
      int64_t winner = 0;
      double sum = 0, squares = 0;
      for (int64_t c = 0; c < each; c++) {
        if (x[c * p] > x[winner * p]) winner = c;
        squares += x[c * p] * x[c * p];
      }
      for (int64_t c = 0; c < each; c++) sum += std::exp(0.5 * (x[c * p] - x[winner * p]));
      for (int64_t c = 0; c < each; c++) {
        const double soft = std::exp(0.5 * (x[c * p] - x[winner * p])) / sum;
        double value = x[c * p];
        if (activity == Activity::normalised) value /= std::max(std::sqrt(squares), 1e-12);
        if (activity == Activity::hard) value = c == winner;
        if (activity == Activity::soft) value = soft;
        if (activity == Activity::competing) value = c == winner ? soft : -soft;
        if (norms) value /= 2;
        if (made) CHECK(std::fabs(y[(map * each + c) * p + i] - value) < 1e-5);
        const double factor = decay == Decay::square ? value : decay == Decay::output ? x[c * p] : 1;
        sums[map % groups * each + c] += value * factor;
      }
    }
  if (decay != Decay::none)
    for (int64_t c = 0; c < k; c++) CHECK(std::fabs(total[c] - sums[c]) < 1e-5 * double(1 + 5 * n * p));
}

void move(int64_t each, int64_t d, Normalisation normalisation, bool decays) {
  const int64_t groups = 2, k = each * groups;
  std::vector<float> delta(k * d), weight(k * d), rate(k, 0.5f);
  std::vector<double> total(k, 0.25);
  for (int64_t i = 0; i < k * d; i++) delta[i] = float(i % 13 - 6), weight[i] = float(i % 5 - 2);
  std::vector<double> expected(k * d);
  std::vector<double> largest(groups, 1e-30);
  for (int64_t i = 0; i < k * d; i++) {
    expected[i] = (delta[i] - (decays ? 0.25 * weight[i] : 0)) / 3;
    double& most = largest[i / (each * d)];
    most = std::max(most, std::fabs(expected[i]));
  }
  const std::vector<float> before = weight;
  hebbian_move({k, d, groups, normalisation, 3, decays ? total.data() : nullptr, rate.data(), delta.data(),
                weight.data()});
  for (int64_t row = 0; row < k; row++) {
    double squares = 0;
    for (int64_t i = row * d; i < (row + 1) * d; i++) {
      if (normalisation == Normalisation::max) expected[i] /= largest[row / each];
      CHECK(std::fabs(delta[i] - expected[i]) < 1e-5);
      expected[i] = before[i] + 0.5 * expected[i];
      if (normalisation == Normalisation::clamp) expected[i] = std::min(1.0, std::max(-1.0, expected[i]));
      squares += expected[i] * expected[i];
    }
    const double scale = normalisation == Normalisation::unit ? std::max(std::sqrt(squares), 1e-12) : 1;
    for (int64_t i = row * d; i < (row + 1) * d; i++) CHECK(std::fabs(weight[i] - expected[i] / scale) < 1e-5);
  }
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (int64_t p : {0, 1, 7, 16, 63, 64, 65, 150})
      for (int64_t each : {1, 3, 17})
        for (Activity activity :
             {Activity::linear, Activity::normalised, Activity::hard, Activity::soft, Activity::competing})
          for (Decay decay : {Decay::none, Decay::square, Decay::activity, Decay::output})
            run(3, each, 2, p, activity, decay, p % 2);
    for (int64_t d : {0, 1, 15, 16, 37, 75})
      for (Normalisation how : {Normalisation::none, Normalisation::clamp, Normalisation::unit, Normalisation::max})
        for (bool decays : {false, true}) move(5, d, how, decays);
  }
}
