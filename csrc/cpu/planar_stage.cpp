#include "planar_stage.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "buffer.h"
#include "dispatch.h"
#include "planar_sum.h"
#include "shares.h"

namespace bionas {

namespace {

// Positions side by side in a panel: the operand of a matrix product, which stays in the L1 cache.
constexpr int PANEL = 64;
// Rows of a matrix product at once.
constexpr int ROWS = 6;
// Positions whose maps stay in the L2 cache between the steps of a stage.
constexpr int64_t together = 1024;

int64_t panels(int64_t positions) { return (positions + PANEL - 1) / PANEL; }

// A matrix [rows, depth] in blocks of ROWS rows, [blocks, depth / group, ROWS, group], filled up by zeros.
template <class Factor>
std::vector<Factor> packed(const float* matrix, int64_t rows, int64_t depth, int64_t row_step, int64_t step) {
  constexpr int group = sizeof(float) / sizeof(Factor);
  const int64_t blocks = (rows + ROWS - 1) / ROWS, groups = (depth + group - 1) / group;
  std::vector<Factor> out(blocks * groups * ROWS * group);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < depth; k++)
      assign(out[((r / ROWS * groups + k / group) * ROWS + r % ROWS) * group + k % group],
             matrix[r * row_step + k * step]);
  return out;
}

std::vector<float> reversed(const float* kernels, int64_t count, int64_t taps) {
  std::vector<float> out(kernels, kernels + count * taps);
  for (int64_t i = 0; i < count; i++) std::reverse(out.begin() + i * taps, out.begin() + (i + 1) * taps);
  return out;
}

template <class Map>
Plane plane_of(const PlanarStage<Map>& s) { return {s.h, s.w, s.kernel / 2 * s.dilation}; }

// Images whose maps stay in a cache.
int64_t images_together(int64_t positions) { return std::max<int64_t>(1, together / positions); }

}  // namespace

}  // namespace bionas

#define BIONAS_KERNEL "planar_stage.inc"
#include "dispatch.inc"

namespace bionas {

template <class Map>
void planar_stage_forward(const PlanarStage<Map>& s, Images<Map> z, double* sum, double* sum_sq) {
  const auto kernel = BIONAS_CHOOSE(planar_forward<Map>);
  Shares<double> sums(2 * s.c_out);
  parallel_for(s.n, 1, [&](int64_t begin, int64_t end) {
    kernel(s, z, sums.start(begin), begin, end);
  });
  add_planar_sums(sums, s.c_out, sum, sum_sq);
}

template <class Map>
void planar_stage_backward(const PlanarStage<Map>& s, const PlanarStageBackward<Map>& g) {
  const auto kernel = BIONAS_CHOOSE(planar_backward<Map>);
  const int64_t square = s.c_out * s.c_in, size = g.pointwise_grad ? square + s.c_in * s.taps() : 0;
  Shares<double> sums(2 * s.c_in);
  Shares<float> grads(size);
  parallel_for(s.n, 1, [&](int64_t begin, int64_t end) {
    kernel(s, g, size ? grads.start(begin) : nullptr, sums.start(begin), begin, end);
  });
  if (g.sum) add_planar_sums(sums, s.c_in, g.sum, g.product_sum);
  if (!size) return;
  bool first = true;
  grads.each([&](const float* own) {
    for (int64_t i = 0; i < square; i++) g.pointwise_grad[i] = first ? own[i] : g.pointwise_grad[i] + own[i];
    for (int64_t i = 0; i < size - square; i++)
      g.depthwise_grad[i] = first ? own[square + i] : g.depthwise_grad[i] + own[square + i];
    first = false;
  });
}

template void planar_stage_forward(const PlanarStage<float>&, Images<float>, double*, double*);
template void planar_stage_forward(const PlanarStage<Narrow>&, Images<Narrow>, double*, double*);
template void planar_stage_backward(const PlanarStage<float>&, const PlanarStageBackward<float>&);
template void planar_stage_backward(const PlanarStage<Narrow>&, const PlanarStageBackward<Narrow>&);

}  // namespace bionas
