// Checks and conversions of the operators' arguments. Activations are [N, H, W, C] with C a multiple of 16; weights
// may have fewer channels and are padded with zeros here. The channels may be those of several images side by side, each
// with C / images of them; the weights are then repeated.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/memory_pool.h"
#include "cpu/mixed_sum.h"
#include "cpu/separable_stage.h"
#include "records.h"

namespace bionas::arguments {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<std::optional<Tensor>>;

inline void check(const char* name, const Tensor& tensor, ScalarType dtype = ScalarType::Float,
                  Device device = Device(DeviceType::CPU)) {
  STD_TORCH_CHECK(tensor.device() == device && tensor.is_contiguous(), name, ": expected a contiguous tensor on the ",
                  device.is_cpu() ? "CPU" : "GPU of the others");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected ", torch::headeronly::toString(dtype));
}

// The dtype of maps of a type of numbers.
template <class Map>
constexpr ScalarType dtype_of = std::is_same_v<Map, Narrow> ? ScalarType::BFloat16 : ScalarType::Float;

// Calls body with a number of the type of a tensor of maps; with a float, whose check then fails, for any other type.
template <class Body>
auto with_maps(const Tensor& maps, const Body& body) {
  return maps.scalar_type() == ScalarType::BFloat16 ? body(Narrow{}) : body(float{});
}

template <class Map>
const Map* data(const Tensor& maps) { return static_cast<const Map*>(maps.const_data_ptr()); }
template <class Map>
Map* mutable_data(const Tensor& maps) { return static_cast<Map*>(maps.mutable_data_ptr()); }

// Activations [N, H, W, C] or several of them, [K, N, H, W, C], C a multiple of 16; unless a kernel can work on nothing,
// not empty.
inline void check_maps(const char* name, const Tensor& maps, int64_t dims = 4, bool may_be_empty = false,
                       ScalarType dtype = ScalarType::Float) {
  check(name, maps, dtype);
  STD_TORCH_CHECK(maps.dim() == dims, name, ": expected ", dims, " dimensions, got ", maps.dim());
  for (int64_t i = dims - 4; i < dims - 1; i++)
    STD_TORCH_CHECK(may_be_empty || maps.size(i) > 0, name, ": expected at least one image and position");
  STD_TORCH_CHECK(maps.size(dims - 1) % 16 == 0, name, ": expected a multiple of 16 channels");
  check_range("channels", maps.size(dims - 1), 16, max_channels);
}

// The number of images side by side in the channels of a map.
inline int64_t checked_images(int64_t images, int64_t channels) {
  check_range("images", images, 1, 16);
  STD_TORCH_CHECK(channels % images == 0, "images: expected a divisor of the number of channels, got ", images);
  return images;
}

// A row of C numbers for each of some things: [rows, C].
inline void check_rows(const char* name, const Tensor& tensor, int64_t rows, int64_t channels,
                       ScalarType dtype = ScalarType::Float) {
  check(name, tensor, dtype);
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == channels, name, ": expected [", rows,
                  ", ", channels, "]");
}

inline const float* pointer(const char* name, const std::optional<Tensor>& tensor,
                            Device device = Device(DeviceType::CPU)) {
  if (!tensor.has_value()) return nullptr;
  check(name, *tensor, ScalarType::Float, device);
  return tensor->const_data_ptr<float>();
}

// An uninitialised tensor on the CPU, from the pool if it is large.
template <class Map = float>
Tensor new_map(const Tensor& like, const std::vector<int64_t>& sizes) {
  std::size_t bytes = sizeof(Map);
  for (int64_t size : sizes)
    STD_TORCH_CHECK(!__builtin_mul_overflow(bytes, std::size_t(size), &bytes), "the result is too large");
  if (bytes < pooled_from) return torch::stable::new_empty(like, sizes, dtype_of<Map>);
  std::vector<int64_t> strides(sizes.size(), 1);
  for (std::size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return torch::stable::from_blob(
      take(bytes), sizes, strides, Device(DeviceType::CPU), dtype_of<Map>, &give);
}

// The maps of several stacks [K_i, N, H, W, C], in order; there is at least one stack.
inline std::vector<AnyMap> each_map(const char* name, const Tensors& stacks) {
  STD_TORCH_CHECK(!stacks.empty(), name, ": expected stacks [K, N, H, W, C]");
  std::vector<AnyMap> maps;
  for (const Tensor& stack : stacks) {
    with_maps(stack, [&](auto number) {
      using Map = decltype(number);
      check_maps(name, stack, 5, false, dtype_of<Map>);
      for (int i = 1; i < 5; i++)
        STD_TORCH_CHECK(stack.size(i) == stacks[0].size(i), name, ": expected maps of the same shape");
      const int64_t size = stack.size(1) * stack.size(2) * stack.size(3) * stack.size(4);
      for (int64_t k = 0; k < stack.size(0); k++) maps.push_back(data<Map>(stack) + k * size);
    });
  }
  return maps;
}

// One map of this many elements per tensor; null for a missing tensor.
inline std::vector<const float*> maps_of(const char* name, const OptionalTensors& tensors, int64_t size) {
  std::vector<const float*> maps;
  for (const std::optional<Tensor>& tensor : tensors) {
    maps.push_back(pointer(name, tensor));
    STD_TORCH_CHECK(!tensor.has_value() || int64_t(tensor->numel()) == size, name, ": expected the shape of the maps");
  }
  return maps;
}

inline std::vector<const float*> maps_of(const char* name, const Tensors& tensors, int64_t size) {
  return maps_of(name, OptionalTensors(tensors.begin(), tensors.end()), size);
}

// The gradient of z of branch k is a · grads[k] + b · z + d, per channel.
template <class Map>
struct Prologue {
  Prologue(
      const Tensors& incoming,  // [N, H_out, W_out, C] of each of K branches; several may be the same
      const Tensors& prologue,  // z [K, N, H_out, W_out, C]; a, b, d [K, C]
      int64_t branches, int64_t size, int64_t channels) {
    STD_TORCH_CHECK(int64_t(incoming.size()) == branches, "grads: expected one for each branch");
    STD_TORCH_CHECK(prologue.size() == 4, "prologue: expected z, a, b, d");
    grads = maps_of("grads", incoming, size);
    check("z", prologue[0], dtype_of<Map>);
    STD_TORCH_CHECK(int64_t(prologue[0].numel()) == branches * size, "z: expected a map for each branch");
    for (int i = 1; i < 4; i++) check_rows("a, b, d", prologue[i], branches, channels);
    z = data<Map>(prologue[0]);
    a = prologue[1].const_data_ptr<float>();
    b = prologue[2].const_data_ptr<float>();
    d = prologue[3].const_data_ptr<float>();
  }

  std::vector<const float*> grads;
  const Map* z;
  const float *a, *b, *d;
};

// Mean and biased variance, float64 [rows, C].
struct Moments {
  Moments(const Tensors& moments, int64_t rows, int64_t channels) {
    STD_TORCH_CHECK(moments.size() == 2, "moments: expected mean and variance");
    for (const Tensor& tensor : moments) check_rows("mean, var", tensor, rows, channels, ScalarType::Double);
    mean = moments[0].const_data_ptr<double>();
    var = moments[1].const_data_ptr<double>();
  }

  const double *mean, *var;
};

// The weights of K branches padded to C / images channels, and repeated for each image.
class Weights {
 public:
  Weights(
      const Tensor& depthwise,  // [Σ c · k²]
      const Tensor& pointwise,  // [K, c, c]
      const Ints& kernels,
      int64_t channels, int64_t images = 1)
      : kernels_(kernels), own_(pointwise.dim() == 3 ? pointwise.size(1) : 0), c_(channels), images_(images) {
    check("depthwise", depthwise);
    check("pointwise", pointwise);
    STD_TORCH_CHECK(pointwise.dim() == 3 && pointwise.size(0) == int64_t(kernels.size()),
                    "pointwise: expected a matrix for each branch");
    STD_TORCH_CHECK(pointwise.size(2) == own_ && own_ > 0 && own_ <= width(),
                    "pointwise: expected square matrices with at most as many channels as x");
    depthwise_ = depthwise.const_data_ptr<float>();
    pointwise_ = pointwise.const_data_ptr<float>();
    int64_t taps = 0;
    for (int64_t k : kernels) {
      offsets_.push_back(taps);
      taps += k * k;
    }
    STD_TORCH_CHECK(depthwise.numel() == taps * own_, "depthwise: expected c · k² elements for each branch");
    if (own_ == c_) return;
    padded_depthwise_.resize(taps * c_);
    padded_pointwise_.resize(kernels.size() * c_ * c_);
    for (size_t k = 0; k < kernels.size(); k++) {
      const int64_t n = kernels[k] * kernels[k];
      for (int64_t first = 0; first < c_; first += width()) {
        std::copy(depthwise_ + offsets_[k] * own_, depthwise_ + (offsets_[k] + n) * own_,
                  padded_depthwise_.begin() + offsets_[k] * c_ + first * n);
        for (int64_t i = 0; i < own_; i++)
          std::copy(pointwise_ + (k * own_ + i) * own_, pointwise_ + (k * own_ + i + 1) * own_,
                    padded_pointwise_.begin() + (k * c_ + first + i) * c_ + first);
      }
    }
  }

  const float* depthwise(int k) const {
    return own_ == c_ ? depthwise_ + offsets_[k] * c_ : padded_depthwise_.data() + offsets_[k] * c_;
  }
  const float* pointwise(int k) const { return (own_ == c_ ? pointwise_ : padded_pointwise_.data()) + k * c_ * c_; }
  int64_t own() const { return own_; }
  int64_t width() const { return c_ / images_; }

 private:
  Ints kernels_, offsets_;
  int64_t own_, c_, images_;
  const float *depthwise_, *pointwise_;
  std::vector<float> padded_depthwise_, padded_pointwise_;
};

// The gradients of the weights of K branches, for kernels with C channels to fill.
class WeightGrads {
 public:
  WeightGrads(const Weights& weights, const Ints& kernels, int64_t channels)
      : kernels_(kernels), own_(weights.own()), width_(weights.width()), c_(channels) {
    for (int64_t k : kernels) taps_ += k * k;
  }

  int64_t depthwise_size() const { return taps_ * own_; }
  int64_t size() const { return depthwise_size() + int64_t(kernels_.size()) * own_ * own_; }

  // The destinations, depthwise [Σ c · k²] and pointwise [K, c, c], must stay valid until `finish`.
  void give(std::vector<Branch>& branches, float* depthwise, float* pointwise) {
    depthwise_ = depthwise;
    pointwise_ = pointwise;
    if (own_ < c_) {
      wide_.resize((taps_ + int64_t(kernels_.size()) * c_) * c_);
      depthwise = wide_.data();
      pointwise = depthwise + taps_ * c_;
    }
    for (std::size_t k = 0, t = 0; k < branches.size(); t += kernels_[k] * kernels_[k], k++) {
      branches[k].depthwise_grad = depthwise + t * c_;
      branches[k].pointwise_grad = pointwise + k * c_ * c_;
    }
  }

  void finish() const {
    if (own_ == c_) return;
    const float* from = wide_.data();
    float* to = depthwise_;
    for (int64_t k : kernels_) {
      const int64_t taps = k * k;
      add_up(from, taps * own_, taps * width_, to);
      to += taps * own_, from += taps * c_;
    }
    to = pointwise_;
    for (std::size_t k = 0; k < kernels_.size(); k++)
      for (int64_t i = 0; i < own_; i++, to += own_) add_up(from + (k * c_ + i) * c_, own_, width_ * (c_ + 1), to);
  }

 private:
  // to[i] = Σ over images of from[i], `step` apart
  void add_up(const float* from, int64_t count, int64_t step, float* to) const {
    std::copy_n(from, count, to);
    for (int64_t first = width_; first < c_; first += width_) {
      from += step;
      for (int64_t i = 0; i < count; i++) to[i] += from[i];
    }
  }

  Ints kernels_;
  int64_t own_, width_, c_, taps_ = 0;
  float *depthwise_ = nullptr, *pointwise_ = nullptr;
  std::vector<float> wide_;
};

}  // namespace bionas::arguments
