#include "augmentation.h"

#define BIONAS_KERNEL "augmentation.inc"
#include "dispatch.inc"

namespace bionas {

void augment(const Augmentation& a) {
  const auto kernel = BIONAS_CHOOSE(augment_images);
  // Shorter work than this, about half a millisecond, gains less from a second thread than it loses by waiting for one.
  const int64_t pixels = int64_t(1) << 19, image = a.c * a.h * a.w;
  parallel_for(a.n, image < pixels ? pixels / image : 1, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

}  // namespace bionas
