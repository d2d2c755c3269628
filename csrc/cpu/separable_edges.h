// All separable candidates of all edges that leave a state: one or two separable stages, batch normalisation behind
// each, and the mixed sum of what comes out. A few branches at a time go all the way, so that what one kernel writes
// the next one finds in a cache.

#pragma once

#include <cstdint>

#include "separable_stage.h"

namespace bionas {

struct SeparableEdges {
  int64_t n, h, w, c;     // of the state
  int stride;             // 1 or 2, of the first stages
  int branches, twice;    // how many candidates there are; the first of them have a second stage
  int edges;
  const Branch* first;    // [branches]
  const Branch* second;   // [twice]
  const int64_t* edge;    // [branches], the edge of each
  const double* mixing;   // [branches]
  const float* x;         // [N, H, W, C]
  double* mean;           // [twice + branches, C]: behind the first stages of two, then behind the last stages
  double* var;
  bool training;          // forward: mean and var are of this batch, and written; else they are read

  // Maps of so many bytes go through the stages together: few enough to stay in a cache, enough to be worth the threads.
  int64_t together = int64_t{2} << 20;

  int64_t ho() const { return (h + stride - 1) / stride; }
  int64_t wo() const { return (w + stride - 1) / stride; }
  int64_t map() const { return n * ho() * wo() * c; }
};

// out[e] = into[e] + Σ_{branches k of e} mixing[k] · BN(z[k])
struct SeparableEdgesForward {
  float* z;                  // [branches, N, H_out, W_out, C]
  const float* const* into;  // [edges], each may be null; or null
  float* const* out;         // [edges]
};

struct SeparableEdgesBackward {
  const float* z;
  const float* const* grad;  // [edges], of out
  double* grad_mixing;       // [branches]
  float* grad_x;             // [N, H, W, C]; or null, and the branches want no weight gradients either
};

void separable_edges_forward(const SeparableEdges& e, const SeparableEdgesForward& f);
void separable_edges_backward(const SeparableEdges& e, const SeparableEdgesBackward& g);

}  // namespace bionas
