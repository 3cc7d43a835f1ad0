// Rows that leave a kernel as codes: the results of an op, and what the kernel is told of them.
#pragma once

#include "../kernels/quantize/params.h"
#include "cuda.h"
#include "fused_rows.h"

namespace lowbit::ops {

struct CodesOnCard {
  Tensor q, scale;
  kernels::quantize::Adjust adjust;
  kernels::quantize::Output to;

  CodesOnCard(const RowCodes& codes, const OnDevice& on)
      : q(empty_cuda(codes.q, codes.q_dtype, on.device.index)),
        scale(empty_cuda(codes.scale, ScalarType::Float, on.device.index)),
        adjust{codes.index ? static_cast<const int32_t*>(codes.index->const_data_ptr()) : nullptr,
               floats(codes.inverse_step), floats(codes.shift)},
        to{codes.floats  ? kernels::quantize::Codes::kFloats
           : codes.bytes ? kernels::quantize::Codes::kInt8
                         : kernels::quantize::Codes::kPacked4,
           codes.bits,
           codes.static_scale ? 0.f : codes.clip,
           q.mutable_data_ptr(),
           codes.q.back(),
           codes.static_scale ? nullptr : static_cast<float*>(scale.mutable_data_ptr())} {
    if (!codes.floats) return;
    to.dtype = float_dtype(codes.q_dtype, "rows", "y");
    to.stride *= size_of(to.dtype);
  }
};

}  // namespace lowbit::ops
