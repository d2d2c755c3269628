// Common to the kernels on channels-first maps, [N, C, H, W].

#pragma once

#include <cstdint>

#include "narrow.h"

namespace bionas {

// Images [C, H, W], `stride` numbers apart.
template <class Number>
struct Images {
  Number* data;
  int64_t stride;
};

// What vectors may read or write beyond the end of a plane.
constexpr int64_t slack = 64;

// The layout of a map in a border of zeros.
struct Plane {
  Plane(int64_t h, int64_t w, int64_t pad) : h(h), w(w), pad(pad), pitch(w + 2 * pad) {}
  int64_t size() const { return (h + 2 * pad) * pitch + slack; }
  int64_t first() const { return pad * pitch + pad; }
  int64_t h, w, pad, pitch;
};

}  // namespace bionas
