// The outputs of planar stages: normalised, dropped, added up; and the sums for the gradient.

#pragma once

#include "planar.h"
#include "shares.h"

namespace bionas {

// out = into + keep · (scale · z + shift), maps of [N, C, positions]; into and keep may be null.
template <class Map>
struct PlanarSum {
  int64_t n, c, positions;
  Images<const Map> z;
  const float *scale, *shift;  // [C]
  const float* keep;           // [N]
};
template <class Map>
void planar_sum(const PlanarSum<Map>& s, Images<const Map> into, Images<Map> out);

// sum, product_sum: [C], Σ keep · grad and Σ keep · grad · z.
template <class Map>
void planar_sums(const PlanarSum<Map>& s, Images<const Map> grad, double* sum, double* product_sum);

// sum, product_sum: [C], the two halves of the shares.
void add_planar_sums(Shares<double>& shares, int64_t c, double* sum, double* product_sum);

}  // namespace bionas
