// The float types of activations. The same order as cpu::DType.
#pragma once

#include <cstdint>

#include "../../numeric/host_device.h"

namespace lowbit::kernels {

enum class DType : int32_t { f32, bf16, f16 };

LOWBIT_HOST_DEVICE constexpr int size_of(DType t) { return t == DType::f32 ? 4 : 2; }

}  // namespace lowbit::kernels
