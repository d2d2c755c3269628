// The weight gradient of a 3×3 convolution in memory of exactly its size, against plain loops.

#include "weight_gradient.h"

#include <cmath>

#include "check.h"

using namespace bionas;

namespace {

void run(int64_t n, int64_t k, int64_t c, int64_t h, int64_t w, int64_t padding_h, int64_t padding_w) {
  const int64_t input_h = h + 2 - 2 * padding_h, input_w = w + 2 - 2 * padding_w;
  if (input_h < 1 || input_w < 1) return;
  std::vector<float> gradient(n * k * h * w), input(n * c * input_h * input_w), output(k * c * 9, NAN);
  for (std::size_t i = 0; i < gradient.size(); i++) gradient[i] = float(i * 7 % 11) - 5;
  for (std::size_t i = 0; i < input.size(); i++) input[i] = float(i * 5 % 13) - 6;
  weight_gradient({n, k, c, h, w, input_h, input_w, padding_h, padding_w, gradient.data(), input.data(),
                   output.data()});
  for (int64_t i = 0; i < k * c * 9; i++) {
    const int64_t filter = i / (9 * c), channel = i / 9 % c, a = i / 3 % 3 - padding_h, b = i % 3 - padding_w;
    double sum = 0;
    for (int64_t image = 0; image < n; image++)
      for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++)
          if (y + a >= 0 && y + a < input_h && x + b >= 0 && x + b < input_w)
            sum += gradient[((image * k + filter) * h + y) * w + x] *
                   input[((image * c + channel) * input_h + y + a) * input_w + x + b];
    CHECK(std::fabs(output[i] - sum) < 1e-4 * double(1 + n * h * w));
  }
}

}  // namespace

int main() {
  for (Isa isa : all_isas) {
    if (!supported(isa)) continue;
    set_isa(isa);
    for (int64_t k : {0, 1, 33})
      for (int64_t c : {0, 1, 34})
        for (int64_t h : {0, 1, 4, 9})
          for (int64_t padding : {0, 1, 2}) run(2, k, c, h, 6, padding, 1);
    run(3, 5, 2, 70, 30, 0, 1);
  }
}
