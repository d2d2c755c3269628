// A stage of a discrete cell, channels first: ReLU, depthwise k×k (or none), pointwise 1×1, and the sums that batch
// normalisation needs. Activations are [N, C, H, W] with any number of channels; the stride is 1.
//
// Map: the numbers of maps and errors, float or Narrow; sums are those of the floats before they are rounded.

#pragma once

#include <cstdint>

#include "planar.h"

namespace bionas {

template <class Map>
struct PlanarStage {
  int64_t n, h, w, c_in, c_out;
  int kernel;              // odd; 0: no depthwise convolution
  int64_t dilation;
  const float* depthwise;  // [C_in, k, k]
  const float* pointwise;  // [C_out, C_in]
  Images<const Map> x;
  const float* scale;      // [C_in], or null: the stage sees ReLU(scale · x + shift)
  const float* shift;

  int64_t positions() const { return h * w; }
  int64_t taps() const { return int64_t{kernel} * kernel; }
};

// sum, sum_sq: [C_out], Σ z and Σ z², overwritten.
template <class Map>
void planar_stage_forward(const PlanarStage<Map>& s, Images<Map> z, double* sum, double* sum_sq);

// The gradient of z is a · keep · grad + b · z + d: the backward pass of batch normalisation and drop-path.
template <class Map>
struct PlanarStageBackward {
  Images<const Map> grad, z;
  const float* keep;                // [N], or null for ones
  const float *a, *b, *d;           // [C_out]
  const float* depthwise_feedback;  // [C_in, k, k]
  const float* pointwise_feedback;  // [C_out, C_in]
  float* depthwise_grad;            // [C_in, k, k]; without weight gradients, both are null
  float* pointwise_grad;            // [C_out, C_in]
  Images<Map> grad_x;             // of the input of ReLU
  bool add;                         // to what is in grad_x
  double* sum;                      // [C_in], Σ grad_x, and Σ grad_x · x; or null
  double* product_sum;
};
template <class Map>
void planar_stage_backward(const PlanarStage<Map>& s, const PlanarStageBackward<Map>& g);

}  // namespace bionas
