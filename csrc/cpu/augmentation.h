// Random crops, mirroring, cutout and normalisation of images of bytes, in one pass.

#pragma once

#include <cstdint>

namespace bionas {

struct Augmentation {
  int64_t n, c, h, w;    // images of the batch, channels, height, width
  int64_t cutout;        // side of the blank square; 0 for none
  const uint8_t* x;      // [images, C, H, W]
  const int64_t* index;  // [N], into the images
  const int64_t* place;  // [N, 5]: row and column of the crop, may be negative; mirrored; row and column of the square
  const float* values;   // [C, 256], the normalised value of each byte; outside of an image the byte is 0
  float* y;              // [N, C, H, W]
};

void augment(const Augmentation& a);

}  // namespace bionas
