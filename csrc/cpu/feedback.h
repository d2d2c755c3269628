// Feedback weights B and the random numbers they are made of, bit for bit those of kernels/feedback/reference.py.

#pragma once

#include <cstdint>

namespace bionas {

struct Stream {
  uint64_t seed;
  uint32_t draw;
};

enum class Magnitude { constant, stored, drawn };

// B = |M| sign(W)
struct FeedbackWeight {
  float* output;        // B, [count]
  const float* weight;  // W, [count]
  int64_t count;        // below 2^32, so that an element's number is one word of the counter
  Magnitude magnitude;
  float scale;          // M where constant
  const float* stored;  // M where stored, [count]
  Stream stream;        // M where drawn: uniform numbers in [0, bound)
  float bound;
};

void feedback_weight(const FeedbackWeight& arguments);

// Element i becomes word 0 of Philox4x32-10 at counter (i, draw, 0, 0), its upper 24 bits as a fraction.
void uniform(
    float* output,  // [count]
    int64_t count,  // below 2^32
    Stream stream);

}  // namespace bionas
