// The kernels as operators of torch in the namespace bionas_fast_native: the operators of the library itself are here,
// those of each op in its *_binding.cpp. Only the stable ABI of torch is used, so one binary runs on every later torch,
// and no Python API, so torch.ops.load_library loads it under every Python version.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/memory_pool.h"
#include "error_code.h"

// The hash of the sources; bionas_fast/native/build.py searches for it in the file.
extern "C" __attribute__((used, visibility("default"))) const char bionas_fast_source[] = BIONAS_SOURCE;

namespace bionas {

void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
}

}  // namespace bionas

namespace {

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (bionas::Isa isa : bionas::all_isas)
    if (bionas::supported(isa)) names.push_back(bionas::name(isa));
  return names;
}

std::string current_isa() { return bionas::name(bionas::current_isa()); }

void set_isa(std::string name) {
  for (bionas::Isa isa : bionas::all_isas)
    if (name == bionas::name(isa) && bionas::supported(isa)) return bionas::set_isa(isa);
  STD_TORCH_CHECK(false, "instruction set ", name, " cannot run here");
}

int64_t release_memory() { return int64_t(bionas::release()); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(bionas_fast_native, m) {
  m.def("isas() -> str[]");
  m.def("isa() -> str");
  m.def("set_isa(str name) -> ()");
  m.def("release_memory() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(bionas_fast_native, CompositeExplicitAutograd, m) {
  m.impl("isas", TORCH_BOX(&isas));
  m.impl("isa", TORCH_BOX(&current_isa));
  m.impl("set_isa", TORCH_BOX(&set_isa));
  m.impl("release_memory", TORCH_BOX(&release_memory));
}
