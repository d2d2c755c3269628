#include "weight_gradient.h"

#include <algorithm>

#include "buffer.h"

namespace bionas {

constexpr int BLOCK = 32;         // channels per block
constexpr int64_t enough = 80;    // tiles, for which a block's numbers stay in the second cache
constexpr int64_t few = 8;        // blocks, to occupy some threads

// Strips of tiles, one below the other, that are worked on together.
struct Chunk {
  int64_t first, strips;  // numbered across all images
  int64_t down, across;   // strips of an image, tiles of a strip
  int64_t tiles() const { return strips * across; }
};

}  // namespace bionas

#define BIONAS_KERNEL "weight_gradient.inc"
#include "dispatch.inc"

namespace bionas {

void weight_gradient(const WeightGradient& a) {
  const auto spread_inputs = BIONAS_CHOOSE(spread_input_strips);
  const auto spread_gradients = BIONAS_CHOOSE(spread_gradient_strips);
  const auto multiply = BIONAS_CHOOSE(multiply_blocks);
  if (!a.k || !a.c) return;
  const int64_t down = (a.h + 3) / 4, across = (a.w + 3) / 4, all = a.n * down;
  const int64_t blocks = (a.k + BLOCK - 1) / BLOCK, input_blocks = (a.c + BLOCK - 1) / BLOCK;
  if (!all || !across) return std::fill_n(a.output, a.k * a.c * 9, 0.0f), void();
  // With few blocks, threads divide the input's blocks, and the gradient is transformed more than once.
  const int64_t parts = std::min(input_blocks, (few + blocks - 1) / blocks), part = (input_blocks + parts - 1) / parts;
  const int64_t strips = std::min(all, std::max<int64_t>(1, enough / across));
  Buffer<float> inputs(input_blocks * 36 * strips * across * BLOCK);
  for (int64_t first = 0; first < all; first += strips) {
    const Chunk chunk{first, std::min(strips, all - first), down, across};
    parallel_for(input_blocks * chunk.strips, 1, [&](int64_t begin, int64_t end) {
      Buffer<float> rows(6 * a.input_w * BLOCK);
      spread_inputs(a, chunk, inputs.data(), rows.data(), begin, end);
    });
    parallel_for(blocks * parts, 1, [&](int64_t begin, int64_t end) {
      Buffer<float> gradients(36 * chunk.tiles() * BLOCK), sums(36 * 8 * BLOCK), rows(4 * a.w * BLOCK);
      for (int64_t i = begin; i < end; i++) {
        if (i == begin || i % parts == 0) spread_gradients(a, chunk, gradients.data(), rows.data(), i / parts);
        multiply(a, chunk, gradients.data(), inputs.data(), sums.data(), i / parts, i % parts * part,
                 std::min(i % parts * part + part, input_blocks));
      }
    });
  }
}

}  // namespace bionas
