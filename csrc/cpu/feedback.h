// Feedback weights B and their random numbers, bit-identical to kernels/feedback/reference.py.

#pragma once

#include <cstdint>

#include "enum.h"

namespace bionas {

struct Stream {
  uint64_t seed;
  uint32_t draw;
};

// As kernels/feedback/records.py lists them.
BIONAS_ENUM(Mode, weight, stored, sign, stored_sign, drawn_sign, direct, custom);

// B = |M| sign(W)
struct FeedbackWeight {
  float* output;        // B, [count]
  const float* weight;  // W, [count]
  int64_t count;        // below 2^32, so that an element's number is one word of the counter
  Mode mode;            // sign, stored_sign or drawn_sign
  float scale;          // M of sign
  const float* stored;  // M of stored_sign, [count]
  Stream stream;        // M of drawn_sign: uniform numbers in [0, bound)
  float bound;
};

void feedback_weight(const FeedbackWeight& arguments);

// Element i becomes word 0 of Philox4x32-10 at counter (i, draw, 0, 0), its upper 24 bits as a fraction.
void uniform(
    float* output,  // [count]
    int64_t count,  // below 2^32
    Stream stream);

}  // namespace bionas
