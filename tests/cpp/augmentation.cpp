// Augmentation in memory of exactly its size, against plain loops.

#include "augmentation.h"

#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

void run(int64_t h, int64_t w, int64_t cutout) {
  const int64_t images = 3, c = 2, n = 8;
  std::vector<uint8_t> x(images * c * h * w);
  for (std::size_t i = 0; i < x.size(); i++) x[i] = uint8_t(i * 37 + 11);
  std::vector<float> values(c * 256), y(n * c * h * w, NAN);
  for (std::size_t i = 0; i < values.size(); i++) values[i] = float(i) + 0.5f;
  std::vector<int64_t> index, place;
  for (int64_t i = 0; i < n; i++) {
    index.push_back((5 * i) % images);
    for (int64_t number : {i - 4, 3 - i, i % 2, i - 2, 4 - i}) place.push_back(number);
  }
  augment({n, c, h, w, cutout, x.data(), index.data(), place.data(), values.data(), y.data()});
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < c; k++)
      for (int64_t row = 0; row < h; row++)
        for (int64_t column = 0; column < w; column++) {
          const int64_t* p = place.data() + 5 * i;
          const int64_t from = row + p[0], at = (p[2] ? w - 1 - column : column) + p[1];
          const bool inside = from >= 0 && from < h && at >= 0 && at < w;
          const uint8_t byte = inside ? x[((index[i] * c + k) * h + from) * w + at] : 0;
          const bool blank = row >= p[3] && row < p[3] + cutout && column >= p[4] && column < p[4] + cutout;
          CHECK(y[((i * c + k) * h + row) * w + column] == (blank ? 0.0f : values[k * 256 + byte]));
        }
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (int64_t cutout : {0, 1, 3, 20})
      for (int64_t h : {1, 4, 9})
        for (int64_t w : {1, 3, 33}) run(h, w, cutout);
  }
}
