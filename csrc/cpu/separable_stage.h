// A separable stage, K branches at once: prologue, ReLU, depthwise k×k, pointwise 1×1, and the sums that batch
// normalisation needs. Activations are [N, H, W, C] with C a multiple of 16; no torch header is included here.
#pragma once
#include <cstdint>

#include "narrow.h"

namespace bionas {

// One branch. Weights as the layers hold them.
struct Branch {
  int kernel;                 // odd
  int dilation;
  const float* depthwise;     // [C, k, k]
  const float* pointwise;     // [C_out, C_in]
  // Backward only: the feedback weights, the incoming gradient, and the
  // destinations of the exact weight gradients, in all branches or in none (null).
  const float* depthwise_feedback;  // [C, k, k]
  const float* pointwise_feedback;  // [C_out, C_in]
  float* depthwise_grad;            // [C, k, k]
  float* pointwise_grad;            // [C_out, C_in]
  const float* grad;                // [N, H_out, W_out, C], several branches may share one
};

// ReLU(x) of every image, [N, H + 2 · pad, W + 2 · pad, C], in a border of zeros; or gradients laid out like that.
struct Tiles {
  int64_t pad;
  float* data;
};

// Map: the numbers of maps, float or Narrow. Weights, gradients and everything that is computed are floats. The sums
// for batch normalisation are those of the floats that are rounded when a map is written; whatever reads the map later,
// be it in a cache, sees the rounded numbers. If the processor multiplies narrow numbers (Isa::avx512_bf16), factors
// of matrix products are rounded as well.
template <class Map>
struct Stage {
  int64_t n, h, w, c;    // input
  int64_t ho, wo;        // output, ⌈h/stride⌉, ⌈w/stride⌉
  int stride;            // 1 or 2
  int branches;
  const Branch* branch;  // [K]
  const Map* x;          // [N, H, W, C] shared by all branches, or [K, N, H, W, C]
  bool shared;
  const float* scale;    // [K, C], or null: the branch sees ReLU(scale · x + shift)
  const float* shift;    // [K, C]
  const Tiles* tiles = nullptr;  // shared: of x, if several stages read it; otherwise recomputed
};

// The number of floats in the tiles of a stage's input.
template <class Map>
int64_t tiles_size(const Stage<Map>& stage, int64_t pad);
template <class Map>
void fill_tiles(const Stage<Map>& stage, const Tiles& tiles);
// grad_x = the interior of the tiles of `grad` where those of x are positive, else 0
template <class Map>
void take_from_tiles(const Stage<Map>& stage, const Tiles& tiles, const Tiles& grad, float* grad_x);

// The width of the border that the kernel of a branch reads.
int64_t padding(const Branch& branch);

template <class Map>
struct StageForward {
  Map* z;           // [K, N, H_out, W_out, C]
  double* sum;      // [K, C], Σ z, overwritten
  double* sum_sq;   // [K, C], Σ z²
  Map* past_caches = nullptr;  // written like z, but by streaming stores: faster if it is not read soon
};

// The gradient of z is a · grad + b · z + d, per channel: the backward pass of batch normalisation, fused.
template <class Map>
struct StageBackward {
  const Map* z;             // [K, N, H_out, W_out, C]
  const float *a, *b, *d;   // [K, C]
  float* grad_x;            // shared: [N, H, W, C]; else [K, N, H, W, C], of the input of ReLU
  double* grad_sum;         // [K, C] Σ grad_x, and
  double* product_sum;      // [K, C] Σ grad_x · input of ReLU; null if x is shared
  const Tiles* grad_tiles = nullptr;  // shared, with tiles: the gradients are added here, and grad_x is not written
  const Stage<Map>* before = nullptr;  // not shared: the stage that computes x, image by image before it is read
};

// For maps of float and of Narrow.
template <class Map>
void stage_forward(const Stage<Map>& stage, const StageForward<Map>& out);
template <class Map>
void stage_backward(const Stage<Map>& stage, const StageBackward<Map>& grads);

}  // namespace bionas
