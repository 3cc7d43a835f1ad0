// The formats of weights by name, numbered as in the checkpoint (python/lowbit/formats.py).
#pragma once

#include <cstdint>

#include "minifloat.h"

namespace lowbit {

enum class Format { kInt4 = 1, kInt8, kE3M2, kE2M3, kE2M1, kE1M2, kE3M0 };

constexpr const char* kFormatNames[] = {"", "int4", "int8", "e3m2", "e2m3", "e2m1", "e1m2", "e3m0"};

static constexpr int bits_of(Format f) {
  return f == Format::kInt8 ? 8 : f == Format::kE3M2 || f == Format::kE2M3 ? 6 : 4;
}

// Calls f with the Minifloat of a format; for formats that are integers it calls nothing.
template <class F>
static inline void with_minifloat(Format format, const F& f) {
  switch (format) {
    case Format::kE3M2:
      return f(E3M2{});
    case Format::kE2M3:
      return f(E2M3{});
    case Format::kE2M1:
      return f(E2M1{});
    case Format::kE1M2:
      return f(E1M2{});
    case Format::kE3M0:
      return f(E3M0{});
    default:
      return;
  }
}

}  // namespace lowbit
