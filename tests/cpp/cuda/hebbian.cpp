// Runs Hebbian kernels of CUDA on the host: hebbian INPUT OUTPUT forwards|backwards. The input holds cases, each a row
// of numbers and its tensors; the output holds what comes of them. Memory is of exactly the size of its tensor.

#include "cuda_shim.h"

#include "hebbian.cu"

#include <cstdio>
#include <cstring>
#include <vector>

using namespace bionas;

namespace {

std::FILE *input, *output;

template <class T>
std::vector<T> read(int64_t count) {
  std::vector<T> values(count);
  if (count && std::fread(values.data(), sizeof(T), count, input) != std::size_t(count))
    throw std::runtime_error("input ends");
  return values;
}

template <class T>
void write(const std::vector<T>& values) {
  if (!values.empty() && std::fwrite(values.data(), sizeof(T), values.size(), output) != values.size())
    throw std::runtime_error("output cannot be written");
}

void activity() {
  const auto numbers = read<int64_t>(9);
  HebbianActivity a{numbers[0], numbers[1], numbers[2], numbers[3], Activity(numbers[4]), Decay(numbers[5])};
  const bool external = numbers[6], divided = numbers[7], made = numbers[8];
  a.temperature = read<float>(1)[0];
  const auto u = read<float>(a.n * a.k * a.p), own = read<float>(external ? a.n * a.k * a.p : 0);
  const auto norm = read<float>(divided ? a.n * a.groups * a.p : 0);
  std::vector<float> y(made ? a.n * a.k * a.p : 0, NAN);
  std::vector<double> total(a.decay != Decay::none ? a.k : 0, NAN), partial;
  if (a.decay != Decay::none) partial.resize(cuda::activity_workspace(a), NAN);
  a.u = u.data(), a.external = external ? own.data() : nullptr, a.norm = divided ? norm.data() : nullptr;
  a.y = made ? y.data() : nullptr;
  cuda::hebbian_activity(a, a.decay != Decay::none ? total.data() : nullptr, partial.data(), nullptr);
  write(y), write(total);
}

void move() {
  const auto numbers = read<int64_t>(5);
  HebbianMove m{numbers[0], numbers[1], numbers[2], Normalisation(numbers[3])};
  m.positions = read<double>(1)[0];
  const auto total = read<double>(numbers[4] ? m.k : 0);
  const auto rate = read<float>(m.k);
  auto delta = read<float>(m.k * m.d), weight = read<float>(m.k * m.d);
  std::vector<float> largest(m.normalisation == Normalisation::max ? m.k : 0, NAN);
  m.total = numbers[4] ? total.data() : nullptr;
  m.rate = rate.data(), m.delta = delta.data(), m.weight = weight.data();
  cuda::hebbian_move(m, largest.data(), nullptr);
  write(delta), write(weight);
}

}  // namespace

int main(int, char** arguments) {
  input = std::fopen(arguments[1], "rb"), output = std::fopen(arguments[2], "wb");
  shim::backwards = !std::strcmp(arguments[3], "backwards");
  for (int64_t left = read<int64_t>(1)[0]; left; left--) read<int64_t>(1)[0] ? move() : activity();
  return std::fclose(output);
}
