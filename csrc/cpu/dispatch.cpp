#include "dispatch.h"

#include <atomic>

namespace bionas {

namespace {

Isa fastest() {
  for (Isa isa : all_isas)
    if (supported(isa)) return isa;
  return Isa::baseline;
}

bool narrow_products() {
#if BIONAS_X86 && __GNUC__ >= 10
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;  // the compiler does not know the name
#endif
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{fastest()};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "baseline";
  }
}

bool supported(Isa isa) {
  if (!BIONAS_HAS(isa == Isa::avx512_bf16 ? 32 : isa == Isa::avx512 ? 16 : isa == Isa::avx2 ? 8 : 4)) return false;
  if (isa == Isa::baseline) return true;
#if BIONAS_X86
  if (!__builtin_cpu_supports("fma")) return false;
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2");
  if (isa == Isa::avx512_bf16 && !narrow_products()) return false;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa current_isa() { return current().load(std::memory_order_relaxed); }

void set_isa(Isa isa) { current().store(isa, std::memory_order_relaxed); }

}  // namespace bionas
