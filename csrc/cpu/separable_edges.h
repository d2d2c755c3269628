// All separable candidates of all edges from a state: one or two separable stages, each with batch normalisation, and
// the mixed sum of their outputs. A few branches at a time pass all steps, so that the output of one kernel is still in
// a cache for the next.

#pragma once

#include <cstdint>

#include "separable_stage.h"

namespace bionas {

// Map: the numbers of maps, float or Narrow; see Stage.
template <class Map>
struct SeparableEdges {
  int64_t n, h, w, c;     // of the state
  int stride;             // 1 or 2, of the first stages
  int branches, twice;    // the number of candidates; the first `twice` have a second stage
  int edges;
  const Branch* first;    // [branches]
  const Branch* second;   // [twice]
  const int64_t* edge;    // [branches], the edge of each
  const double* mixing;   // [branches]
  const Map* x;           // [N, H, W, C]
  double* mean;           // [twice + branches, C]: after the first stages of two, then after the last stages
  double* var;
  bool training;          // forward: mean and var are of this batch, and written; else they are read
  int64_t images = 1;     // side by side in the channels of a map, each with C / images of them

  // The bytes of maps per group of branches: few enough to stay in a cache, enough to occupy the threads.
  int64_t together = int64_t{2} << 20;

  int64_t ho() const { return (h + stride - 1) / stride; }
  int64_t wo() const { return (w + stride - 1) / stride; }
  int64_t map() const { return n * ho() * wo() * c; }
  int64_t width() const { return c / images; }
  double positions() const { return double(n * ho() * wo() * images); }
};

// out[e] = into[e] + Σ_{branches k of e} mixing[k] · BN(z[k])
template <class Map>
struct SeparableEdgesForward {
  Map* z;                    // [branches, N, H_out, W_out, C]
  const float* const* into;  // [edges], each may be null; or null
  float* const* out;         // [edges]
};

template <class Map>
struct SeparableEdgesBackward {
  const Map* z;
  const float* const* grad;  // [edges], of out
  double* grad_mixing;       // [branches]
  float* grad_x;             // [N, H, W, C]; or null, then without weight gradients
};

template <class Map>
void separable_edges_forward(const SeparableEdges<Map>& e, const SeparableEdgesForward<Map>& f);
template <class Map>
void separable_edges_backward(const SeparableEdges<Map>& e, const SeparableEdgesBackward<Map>& g);

}  // namespace bionas
