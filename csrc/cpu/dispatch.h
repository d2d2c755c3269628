// Common to all kernels: the choice of an instruction set at run time, and torch's threads. No torch header.
//
// A kernel is `name.inc`, plain C++ that compilers vectorise or GCC vector extensions, without includes.
// `name.cpp` compiles it once for each instruction set and calls the variant that suits the machine:
//
//     #include "name.h"
//     #define BIONAS_KERNEL "name.inc"
//     #include "dispatch.inc"
//
//     void name(const Name& a) {
//       const auto kernel = BIONAS_CHOOSE(name_rows);
//       parallel_for(a.rows, 64, [&](int64_t begin, int64_t end) { kernel(a, begin, end); });
//     }

#pragma once

#include <cstdint>

// Elsewhere the baseline is the only variant: SSE2 under other compilers, NEON on ARM.
#ifdef BIONAS_X86  // given: 0 for the baseline alone
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define BIONAS_X86 1
#else
#define BIONAS_X86 0
#endif

// The variants to compile: the sum of the floats in one of their vector registers, 16 + 8 + 4, and 32 for avx512_bf16;
// 0: all of them.
#ifndef BIONAS_LANES
#define BIONAS_LANES 0
#endif

// Whether the variant of this number is compiled.
#define BIONAS_HAS(lanes) (BIONAS_X86 ? BIONAS_LANES == 0 || (BIONAS_LANES & (lanes)) : (lanes) == 4)

// For loops that need all registers: inlined into a large function, they would share them with it.
#define BIONAS_APART __attribute__((noinline))

namespace bionas {

// avx512_bf16 multiplies narrow numbers in the matrix products of narrow maps.
enum class Isa { baseline, avx2, avx512, avx512_bf16 };

constexpr Isa all_isas[] = {Isa::avx512_bf16, Isa::avx512, Isa::avx2, Isa::baseline};  // fastest first

const char* name(Isa isa);

// Whether the variant was compiled and the machine supports it.
bool supported(Isa isa);

// The variant that runs, process-wide: the fastest, until set_isa chooses another supported one.
Isa current_isa();
void set_isa(Isa isa);

template <class Function>
Function* choose(Function* avx512_bf16, Function* avx512, Function* avx2, Function* baseline) {
  switch (current_isa()) {
    case Isa::avx512_bf16: return avx512_bf16;
    case Isa::avx512: return avx512;
    case Isa::avx2: return avx2;
    default: return baseline;
  }
}

// Calls body(begin, end, context) on consecutive pieces of [0, count), each at least `grain` long where there are
// several, one piece per thread. Not defined here: the library uses torch's threads, tests define others.
void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_for(
      count,
      grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<Body*>(&body));
}

}  // namespace bionas
