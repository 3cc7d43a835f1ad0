// What a row meets between its values and its codes: an index, a factor, a shift. Shared by the kernels that
// quantise what they have just computed.
#pragma once

#include "codes.cuh"

namespace lowbit::kernels::quantize {

// Codes with the scale of the row, or of the values themselves.
struct RowCoder : IntegerCoder {
  LOWBIT_DEVICE bool fixed() const { return to.scale == nullptr; }
};

// The values themselves, rounded to the dtype. kWide: rows start and end on 16 bytes.
template <bool kWide>
LOWBIT_DEVICE void store_floats(const Output& to, uint8_t* row, int chunk, const float (&x)[kChunk]) {
  store_chunk<kWide>(row, to.dtype, chunk * kChunk, int(to.stride / size_of(to.dtype)), x);
}

// Of a team.
template <bool kWide>
struct FloatRows : IntegerCoder {
  LOWBIT_DEVICE bool fixed() const { return true; }
  LOWBIT_DEVICE void store(uint8_t* q, int chunk, const float (&x)[kChunk], float, bool active) const {
    if (active) store_floats<kWide>(to, q, chunk, x);
  }
};

// v[i] = get(index[begin + i]), zero past `count`. Of k values; an index past them reads the last.
template <bool kWide, class Get>
LOWBIT_DEVICE void gather_chunk(float (&v)[kChunk], const Adjust& adjust, int k, int begin, int count,
                                const Get& get) {
  RawChunk index;
  load_chunk<kWide>(index, adjust.index, DType::f32, begin, count);
  const uint32_t last = uint32_t(k - 1);
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i)
    v[i] = begin + i < count ? get(int(index.w[i] < last ? index.w[i] : last)) : 0.f;
}

template <bool kWide>
LOWBIT_DEVICE void multiply_factor(float (&v)[kChunk], const float* factor, int begin, int count) {
  if (!factor) return;
  RawChunk raw;
  load_chunk<kWide>(raw, factor, DType::f32, begin, count);
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) v[i] = ptx::mul_rn(v[i], ptx::bit_cast<float>(raw.w[i]));
}

}  // namespace lowbit::kernels::quantize
