// The outputs of planar stages: normalised, dropped, added up; and the sums for the gradient.

#pragma once

#include "planar.h"
#include "shares.h"

namespace bionas {

// out = into + keep · (scale · z + shift), maps of [N, C, positions]; into and keep may be null.
struct PlanarSum {
  int64_t n, c, positions;
  Images<const float> z;
  const float *scale, *shift;  // [C]
  const float* keep;           // [N]
};
void planar_sum(const PlanarSum& s, Images<const float> into, Images<float> out);

// sum, product_sum: [C], Σ keep · grad and Σ keep · grad · z.
void planar_sums(const PlanarSum& s, Images<const float> grad, double* sum, double* product_sum);

// sum, product_sum: [C], the two halves of the shares.
void add_planar_sums(Shares<double>& shares, int64_t c, double* sum, double* product_sum);

}  // namespace bionas
