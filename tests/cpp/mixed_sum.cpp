// The mixed sum in memory of exactly its size, against plain loops.

#include "mixed_sum.h"

#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

constexpr int terms = 8, edges = 3, maps = 5;
constexpr int64_t edge[terms] = {0, 0, 0, 0, 0, 0, 2, 2};
constexpr int index[terms] = {0, 1, 2, 3, 4, 0, 4, 1};

void run(int64_t p, int64_t c, bool into) {
  std::vector<std::vector<float>> map, before, out, grad;
  for (int k = 0; k < maps; k++) {
    map.emplace_back(p * c);
    for (int64_t i = 0; i < p * c; i++) map[k][i] = float((i * (k + 2)) % 11 - 5);
  }
  for (int e = 0; e < edges; e++) {
    before.emplace_back(p * c, float(e));
    grad.emplace_back(p * c, float(e + 1));
    out.emplace_back(p * c, NAN);
  }
  std::vector<float> weight(terms * c), offset(edges * c, 0.5f);
  for (int64_t i = 0; i < terms * c; i++) weight[i] = float(i % 3);
  std::vector<std::vector<Narrow>> narrow_map(map.size());
  std::vector<AnyMap> map_of;
  const float *base[edges], *grads[edges];
  float* to[edges];
  for (std::size_t k = 1; k < map.size(); k += 2)  // of whole numbers so small that they are the same
    for (float value : map[k]) narrow_map[k].push_back(narrow(value));
  for (int t = 0; t < terms; t++) {
    const int64_t k = index[t];
    map_of.push_back(k % 2 ? AnyMap(narrow_map[k].data()) : AnyMap(map[k].data()));
  }
  for (int e = 0; e < edges; e++) {
    base[e] = before[e].data();
    grads[e] = grad[e].data();
    to[e] = out[e].data();
  }
  const MixedSum sum{p, c, edges, terms, map_of.data(), edge};
  mixed_sum_forward(sum, weight.data(), offset.data(), into ? base : nullptr, to);
  std::vector<double> grad_sum(edges * c, NAN), products(terms * c, NAN), totals(terms * c);
  mixed_sum_backward(sum, grads, grad_sum.data(), products.data());
  for (int e = 0; e < edges; e++)
    for (int64_t i = 0; i < p * c; i++) {
      double value = 0.5 + (into ? e : 0);
      for (int t = 0; t < terms; t++)
        if (edge[t] == e) {
          value += double(weight[t * c + i % c]) * map[index[t]][i];
          totals[t * c + i % c] += double(grad[e][i]) * map[index[t]][i];
        }
      CHECK(std::fabs(out[e][i] - value) < 1e-3);
    }
  for (int64_t i = 0; i < terms * c; i++) CHECK(std::fabs(products[i] - totals[i]) < 1e-3 * (1 + std::fabs(totals[i])));
  for (int64_t i = 0; i < edges * c; i++) CHECK(std::fabs(grad_sum[i] - double(p * (i / c + 1))) < 1e-6);
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (int64_t p : {0, 1, 7, 127, 128, 129, 1000})
      for (int64_t c : {16, 32, 48, 64})
        for (bool into : {false, true}) run(p, c, into);
  }
}
