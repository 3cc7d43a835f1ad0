// Which gated activation; for the host too.
#pragma once

#include <cstdint>

namespace lowbit::kernels {

enum class Activation : int32_t { kSilu, kGeluTanh };

}  // namespace lowbit::kernels
