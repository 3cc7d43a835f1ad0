#pragma once

#include "host_device.h"

namespace lowbit {

// a / b rounded up, for a >= 0, b > 0 and a + b within the wider type.
template <class A, class B>
LOWBIT_HOST_DEVICE constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

}  // namespace lowbit
