// Augmentation of batches of images as an operator of torch; see library.cpp.

#include "arguments.h"
#include "cpu/augmentation.h"

namespace {

using namespace bionas::arguments;

Tensor augment(const Tensor& images, const Tensor& index, const Tensor& place, int64_t cutout, const Tensor& values) {
  check("images", images, ScalarType::Byte);
  check("index", index, ScalarType::Long);
  check("place", place, ScalarType::Long);
  check("values", values);
  STD_TORCH_CHECK(images.dim() == 4, "images: expected [images, C, H, W]");
  STD_TORCH_CHECK(index.dim() == 1, "index: expected [N]");
  const int64_t n = index.size(0), c = images.size(1), largest = int64_t(1) << 24;
  STD_TORCH_CHECK(place.dim() == 2 && place.size(0) == n && place.size(1) == 5, "place: expected [", n, ", 5]");
  STD_TORCH_CHECK(values.dim() == 2 && values.size(0) == c && values.size(1) == 256, "values: expected [", c, ", 256]");
  STD_TORCH_CHECK(cutout >= 0 && cutout <= largest, "cutout: expected 0 to ", largest, ", got ", cutout);
  const int64_t* chosen = index.const_data_ptr<int64_t>();
  const int64_t* numbers = place.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; i++)
    STD_TORCH_CHECK(chosen[i] >= 0 && chosen[i] < images.size(0), "index: expected 0 to ", images.size(0) - 1, ", got ",
                    chosen[i]);
  for (int64_t i = 0; i < 5 * n; i++)
    STD_TORCH_CHECK(numbers[i] >= -largest && numbers[i] <= largest, "place: expected -", largest, " to ", largest,
                    ", got ", numbers[i]);
  Tensor output = new_map(values, {n, c, images.size(2), images.size(3)});
  if (output.numel() == 0) return output;
  bionas::augment({n, c, images.size(2), images.size(3), cutout, images.const_data_ptr<uint8_t>(), chosen, numbers,
                   values.const_data_ptr<float>(), output.mutable_data_ptr<float>()});
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def("augment(Tensor images, Tensor index, Tensor place, int cutout, Tensor values) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CPU, m) { m.impl("augment", TORCH_BOX(&augment)); }
