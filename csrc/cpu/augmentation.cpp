#include "augmentation.h"

#define BIONAS_KERNEL "augmentation.inc"
#include "dispatch.inc"

namespace bionas {

void augment(const Augmentation& a) {
  const auto kernel = BIONAS_CHOOSE(augment_images);
  parallel_for(a.n, 32, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
}

}  // namespace bionas
