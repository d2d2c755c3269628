// Maps of few channels hold several images side by side, so that no lane of a vector is empty.

#pragma once

#include <cstdint>

namespace bionas {

// Sums over positions, [rows, images, width]: those of all images in the place of each.
inline void add_up_images(double* sums, int64_t rows, int64_t images, int64_t width) {
  if (images == 1) return;
  for (int64_t r = 0; r < rows; r++, sums += images * width)
    for (int64_t j = 0; j < width; j++) {
      double total = 0;
      for (int64_t i = 0; i < images; i++) total += sums[i * width + j];
      for (int64_t i = 0; i < images; i++) sums[i * width + j] = total;
    }
}

}  // namespace bionas
