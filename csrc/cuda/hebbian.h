// Hebbian updates on a GPU; includes no header of CUDA or torch. Kernels are launched asynchronously into a stream.

#pragma once

#include "../cpu/hebbian.h"

namespace bionas::cuda {

using Stream = void*;  // a cudaStream_t

// The reason why no kernel can run on the current device; empty if they can.
const char* obstacle();

// As bionas::hebbian_activity, all pointers to memory of the GPU.
void hebbian_activity(
    const HebbianActivity& a,
    double* total,    // [K]; null where nothing decays
    double* partial,  // workspace of activity_workspace(a) elements; unused where nothing decays
    Stream stream);
int64_t activity_workspace(const HebbianActivity& a);

// As bionas::hebbian_move.
void hebbian_move(
    const HebbianMove& m,
    float* largest,  // workspace of K elements; unused but for Normalisation::max
    Stream stream);

}  // namespace bionas::cuda
