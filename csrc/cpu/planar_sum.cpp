#include "planar_sum.h"

#include <algorithm>
#include <type_traits>

#include "dispatch.h"

#define BIONAS_KERNEL "planar_sum.inc"
#include "dispatch.inc"

namespace bionas {

void add_planar_sums(Shares<double>& shares, int64_t c, double* sum, double* product_sum) {
  std::fill_n(sum, c, 0.0);
  std::fill_n(product_sum, c, 0.0);
  shares.each([&](const double* own) {
    for (int64_t i = 0; i < c; i++) {
      sum[i] += own[i];
      product_sum[i] += own[c + i];
    }
  });
}

template <class Map>
void planar_sum(const PlanarSum<Map>& s, Images<const Map> into, Images<Map> out) {
  const auto kernel = BIONAS_CHOOSE(planar_sum_images<Map>);
  parallel_for(s.n, 1, [&](int64_t begin, int64_t end) { kernel(s, into, out, begin, end); });
}

template <class Map>
void planar_sums(const PlanarSum<Map>& s, Images<const Map> grad, double* sum, double* product_sum) {
  const auto kernel = BIONAS_CHOOSE(planar_sums_images<Map>);
  Shares<double> sums(2 * s.c);
  parallel_for(s.n, 1, [&](int64_t begin, int64_t end) { kernel(s, grad, sums.start(begin), begin, end); });
  add_planar_sums(sums, s.c, sum, product_sum);
}

template void planar_sum(const PlanarSum<float>&, Images<const float>, Images<float>);
template void planar_sum(const PlanarSum<Narrow>&, Images<const Narrow>, Images<Narrow>);
template void planar_sums(const PlanarSum<float>&, Images<const float>, double*, double*);
template void planar_sums(const PlanarSum<Narrow>&, Images<const Narrow>, double*, double*);

}  // namespace bionas
