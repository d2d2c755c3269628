// The check of the error codes that torch's C functions return.

#pragma once

#include <torch/csrc/stable/library.h>

// The name of torch 2.11, which has the same macro.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#include <torch/headeronly/util/shim_utils.h>
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif
