// The weight gradient of a 3×3 convolution of stride 1, by minimal filtering (Winograd 1980; Lavin & Gray, "Fast
// algorithms for convolutional neural networks", CVPR 2016): F(3×3, 4×4), a quarter of the multiplications.

#pragma once

#include <cstdint>

namespace bionas {

struct WeightGradient {
  int64_t n, k, c;                // images, channels of the gradient and of the input
  int64_t h, w;                   // positions of the gradient
  int64_t input_h, input_w;       // of the input
  int64_t padding_h, padding_w;   // zeros around the input, on each side
  const float* gradient;          // [N, K, H, W]
  const float* input;             // [N, C, H_in, W_in]
  float* output;                  // [K, C, 3, 3]
};

// output[k, c, a, b] = Σ gradient[n, k, i, j] · input[n, c, i + a - padding, j + b - padding].
// The rounding error is five to ten times that of direct summation.
void weight_gradient(const WeightGradient& a);

}  // namespace bionas
