// Maps that are saved for the backward pass may be stored in bfloat16: a float without the lower half of its mantissa.
// Kernels compute in float, convert such maps where they load them, and round to nearest even where they store them.

#pragma once

#include <cstdint>
#include <cstring>

namespace bionas {

struct Narrow {
  uint16_t bits;
};

inline Narrow narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return {0x7fc0};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float wide(Narrow value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// For maps of either type.
inline float wide(float value) { return value; }
inline void assign(Narrow& to, float value) { to = narrow(value); }
inline void assign(float& to, float value) { to = value; }

}  // namespace bionas
