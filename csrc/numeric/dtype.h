// The float types of activations, as every backend's parameters name them.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace lowbit {

enum class DType : int32_t { f32, bf16, f16 };

// static: the instruction sets of cpu/ include this too
static LOWBIT_HOST_DEVICE constexpr int size_of(DType t) { return t == DType::f32 ? 4 : 2; }

}  // namespace lowbit
