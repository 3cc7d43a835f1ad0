// Around the GEMM: weights back to fp16 or bf16, the epilogue of torch's matmul, floats to codes.
#pragma once

#include "../../layout/mma_fragment.h"
#include "../../numeric/ceil_div.h"
#include "../../numeric/minifloat.h"
#include "../../ptx/sync.h"
#include "../common/elements.cuh"
#include "epilogue.cuh"
#include "group_scale.cuh"
#include "unpack.cuh"

namespace lowbit::kernels::fp_gemm {

constexpr int kCodecThreads = 128;
constexpr int kRowBytes =
    2 * fp_fragment::kK + 16;  // of a staged row: the pad turns eight rows into all banks
constexpr int kDequantizeShared = kCodecThreads / 32 * 16 * kRowBytes;

// Scales of the lane's channels g and g + 8 of its slab at k; past the end, those of the last group.
LOWBIT_DEVICE void scales_at(float (&scale)[2], const DequantizeParams& p, int n_block, int k) {
  const int groups = groups_of(p.k, p.group_shift), at = k >> p.group_shift;
  const int64_t group = int64_t(n_block) * groups + (at < groups ? at : groups - 1);
  const int channel = 16 * ptx::warp_index() + ptx::lane_index() / 4;
  LOWBIT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int64_t place = 64 * group + channel + 8 * i;
    if (p.scales == Scales::kE8M0) scale[i] = e8m0_value(ptx::ld_global(p.group_scale + place));
    else
      scale[i] = ptx::cvt_f32_f16(ptx::ld_global(reinterpret_cast<const uint16_t*>(p.group_scale) + place));
  }
}

// A block of the grid is a block of the weight, 64 channels x 128 k; a warp turns one slab of 16 channels
// from fragments into rows, through shared memory, and writes 256 bytes of each row.
template <Weight kWeight, Half kHalf>
LOWBIT_KERNEL(kCodecThreads, 8)
dequantize_kernel(const DequantizeParams p) {
  const int k_blocks = ceil_div(p.k, fp_fragment::kK), lane = ptx::lane_index(), warp = ptx::warp_index();
  const int block = ptx::block_index_x(), k = block % k_blocks * fp_fragment::kK;
  const int row = block / k_blocks * fp_fragment::kN + 16 * warp;
  const auto staged = ptx::dynamic_smem<uint8_t>() + warp * (16 * kRowBytes);
  Slab<kWeight> slab;
  slab.load_global(p.weight + (int64_t(block) * 4 + warp) * Slab<kWeight>::kBytes);
  LOWBIT_UNROLL
  for (int chunk = 0; chunk < 4; ++chunk) {
    uint32_t a[2][4];
    slab.template fragments<kHalf>(chunk, a);
    float scale[2] = {1.f, 1.f};
    if (p.scales != Scales::kNone) scales_at(scale, p, block / k_blocks, k + 32 * chunk);
    LOWBIT_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int at = 64 * chunk + 32 * (i / 4) + fragment::a_byte(lane, i % 4);
      const DType dtype = kHalf == Half::kF16 ? DType::f16 : DType::bf16;
      const uint32_t w[4] = {a[i / 4][i % 4], 0, 0, 0};
      float v[kChunk];
      halves_to_float(v, w, dtype);
      ptx::st_shared((staged + (fragment::a_row(lane, i % 4) * kRowBytes + at)).template as<uint32_t>(),
                     round_halves(ptx::mul_rn(ptx::mul_rn(v[0], p.factor), scale[i % 2]),
                                  ptx::mul_rn(ptx::mul_rn(v[1], p.factor), scale[i % 2]), dtype));
    }
  }
  ptx::syncwarp();
  LOWBIT_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int r = 2 * i + lane / 16, at = lane % 16 * 8;
    if (row + r >= p.n || k + at >= p.out_stride) continue;
    const auto v = ptx::ld_shared((staged + (r * kRowBytes + 2 * at)).template as<ptx::u32x4>());
    auto* to = static_cast<uint16_t*>(p.out) + ((row + r) * p.out_stride + k + at);
    ptx::st_global(reinterpret_cast<ptx::u32x4*>(to), v);
  }
}

// Neighbouring channels of one token that a thread takes.
LOWBIT_HOST_DEVICE int finish_step(const FinishParams& p) {
  return p.n % 4 == 0 && p.y_stride % 4 == 0 ? 4 : 1;
}

template <Half kHalf>
LOWBIT_KERNEL(kCodecThreads, 8)
finish_kernel(const FinishParams p) {
  const int step = finish_step(p), across = p.n / step;
  const int64_t at = int64_t(ptx::block_index_x()) * kCodecThreads + ptx::thread_index();
  if (at >= int64_t(p.m) * across) return;
  const int row = int(at / across), first = int(at % across) * step;
  const float* from = p.sum + (int64_t(row) * p.n + first);
  float v[4] = {};
  if (step == 4) {
    const auto four = ptx::ld_global<ptx::Load::kNc>(reinterpret_cast<const ptx::f32x4*>(from));
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = four[i];
  } else {
    v[0] = ptx::ld_global<ptx::Load::kNc>(from);
  }
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    if (i >= step) break;
    v[i] = ptx::mul_rn(v[i], ptx::ld_global<ptx::Load::kNc>(p.w_scale + first + i));
    if (p.bias) v[i] = ptx::add_rn(v[i], ptx::ld_global<ptx::Load::kNc>(p.bias + first + i));
  }
  const int64_t to = row * p.y_stride + first;
  if (p.residual) {
    const auto residual = load_halves<kHalf>(p.residual, to, step, step == 4);
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = ptx::add_rn(v[i], residual[i]);
  }
  auto* y = static_cast<uint16_t*>(p.y) + to;
  const DType dtype = kHalf == Half::kF16 ? DType::f16 : DType::bf16;
  if (step == 1) return ptx::st_global(y, round_half(v[0], dtype));
  ptx::st_global(reinterpret_cast<ptx::u32x2*>(y),
                 ptx::u32x2{{round_halves(v[0], v[1], dtype), round_halves(v[2], v[3], dtype)}});
}

inline int64_t encode_blocks(const EncodeParams& p) {
  return ceil_div(p.count, int64_t(kCodecThreads * kChunk));
}
inline bool is_aligned(const EncodeParams& p) {
  return reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && reinterpret_cast<uintptr_t>(p.codes) % 8 == 0;
}

// Eight codes of a thread: 16 or 32 bytes in, 8 bytes out.
template <class Float>
LOWBIT_KERNEL(kCodecThreads, 8)
encode_kernel(const EncodeParams p, bool aligned) {
  const int64_t begin = (int64_t(ptx::block_index_x()) * kCodecThreads + ptx::thread_index()) * kChunk;
  if (begin >= p.count) return;
  const int left = p.count - begin < kChunk ? int(p.count - begin) : kChunk;
  const auto* x = static_cast<const uint8_t*>(p.x) + begin * size_of(p.dtype);
  const bool wide = aligned && left == kChunk;
  RawChunk raw = {};
  if (wide) load_chunk<true>(raw, x, p.dtype, 0, kChunk);
  else load_chunk<false>(raw, x, p.dtype, 0, left);
  float v[kChunk];
  to_float(v, raw, p.dtype);
  ptx::Vector<uint8_t, kChunk> codes;
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i)
    codes[i] =
        p.ties_away ? Float::template encode<Ties::kAway>(v[i]) : Float::template encode<Ties::kEven>(v[i]);
  if (wide) return ptx::st_global(reinterpret_cast<ptx::Vector<uint8_t, kChunk>*>(p.codes + begin), codes);
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i)
    if (i < left) ptx::st_global(p.codes + begin + i, codes[i]);
}

}  // namespace lowbit::kernels::fp_gemm
