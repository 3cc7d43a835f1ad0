// INT4 keys and values on CUDA: what the kernels take. No torch. The numbers are those of cpu/kv_cache-inl.h.
#pragma once

#include <cstdint>

#include "../common/device.h"
#include "../../numeric/dtype.h"

namespace lowbit::kernels::kv_cache {

struct Params {
  const void* x;  // quantise: [rows, d] contiguous
  void* y;        // dequantise: [rows, d] contiguous
  DType dtype;    // of x or y
  int64_t rows, d;
  float clip;        // quantise: share of the range kept
  uint8_t* packed;   // [rows, ceil(d / 2)], low nibble = even d; an odd d pads with 0
  uint16_t* params;  // fp16 [rows, 2]: scale, zero; 4-byte aligned
};

Error kv4_quantize_launch(const Params& p, const Device& device, Stream stream);
Error kv4_dequantize_launch(const Params& p, const Device& device, Stream stream);

}  // namespace lowbit::kernels::kv_cache
