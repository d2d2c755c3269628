// The parts of a Hebbian update other than its outer product; see kernels/hebbian/reference.py for the formulas.

#pragma once

#include <cstdint>

#include "enum.h"

namespace bionas {

// As kernels/hebbian/records.py lists them.
BIONAS_ENUM(Activity, linear, normalised, hard, soft, competing);  // competing: soft, negative except at the largest
BIONAS_ENUM(Decay, none, square, activity, output, lower);         // lower: not implemented here, mixes filters
BIONAS_ENUM(Normalisation, none, clamp, unit, max);

struct HebbianActivity {
  int64_t n, k, p, groups;  // images, channels, positions of an image, groups of channels that compete
  Activity activity;
  Decay decay;
  float temperature;
  const float* u;      // [N, K, P]
  const float* external;  // y of the caller, for a linear activity, [N, K, P]; null for u
  const float* norm;   // divisor of y, [N, groups, P]; or null
  float* y;            // [N, K, P]; null if not requested, for a linear activity only
};

// y, and Σ y², Σ y or Σ y·u of every channel. Probabilities below 2^-100 are 0: products with subnormal numbers would
// make the outer product that follows a hundred times as slow.
void hebbian_activity(
    const HebbianActivity& a,
    double* total);  // [K]; null where nothing decays

struct HebbianMove {
  int64_t k, d, groups;  // filters, weights of a filter
  Normalisation normalisation;
  double positions;
  const double* total;  // [K], from hebbian_activity; or null
  const float* rate;    // [K]
  float* delta;         // [K, D], the outer product; becomes the update
  float* weight;        // [K, D]
};

// delta = (delta - total · weight) / positions, weight += rate · delta, each normalised.
void hebbian_move(const HebbianMove& m);

}  // namespace bionas
