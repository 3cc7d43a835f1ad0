// The example of csrc/emu/README.md: y [M, 8] = x [M, K] * w [8, K]^T in int8, one warp per 16 rows, a ring
// of two stages.
#pragma once

#include "../../csrc/layout/mma_fragment.h"
#include "../../csrc/ptx/cp_async.h"
#include "../../csrc/ptx/ldmatrix.h"
#include "../../csrc/ptx/memory.h"
#include "../../csrc/ptx/mma.h"
#include "../../csrc/ptx/sync.h"

namespace lowbit::example {

constexpr int kStages = 2,
              kRowBytes = 48;  // 32 bytes of k and 16 of padding: ldmatrix rows fall on different banks
constexpr int kStageBytes = (16 + 8) * kRowBytes;

LOWBIT_KERNEL(32, 1) int8_gemm(const int8_t* x, const int8_t* w, int32_t* y, int m, int k) {
  using namespace lowbit::ptx;
  const smem_ptr<int8_t> smem = dynamic_smem<int8_t>();
  const int lane = lane_index(), first_row = 16 * block_index_x();

  auto load = [&](int step) {  // 24 rows of 32 bytes: 48 chunks of 16
    const smem_ptr<int8_t> stage = smem + step % kStages * kStageBytes;
    for (int chunk = lane; chunk < 48; chunk += 32) {
      const int row = chunk / 2, byte = 16 * (chunk % 2);
      const bool is_x = row < 16, inside = !is_x || first_row + row < m;
      const int8_t* from = is_x ? x + int64_t(inside ? first_row + row : 0) * k : w + int64_t(row - 16) * k;
      cp_async_cg_16_zfill(stage + row * kRowBytes + byte, from + 32 * step + byte, inside ? 16 : 0);
    }
  };

  int32_t acc[4] = {0, 0, 0, 0};  // [16, 8]
  const int steps = k / 32;
  load(0);
  cp_async_commit_group();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load(step + 1);
    cp_async_commit_group();
    cp_async_wait_group<1>();
    syncwarp();  // every lane's bytes of this step have landed
    const smem_ptr<int8_t> stage = smem + step % kStages * kStageBytes;
    uint32_t a[4], b[2];  // [16, 32], [8, 32]
    ldmatrix_x4(a, stage + fragment::ldmatrix_a_row(lane) * kRowBytes + fragment::ldmatrix_a_byte(lane));
    ldmatrix_x2(b, stage + (16 + lane % 8) * kRowBytes + fragment::ldmatrix_b_byte(lane));
    mma_m16n8k32_s32_s8_s8(acc, a, b);
    syncwarp();  // everybody has read this stage before the next load overwrites it
  }
  for (int i = 0; i < 4; ++i) {
    const int row = first_row + fragment::d_row(lane, i);
    if (row < m) st_global(y + row * 8 + fragment::d_col(lane, i), acc[i]);
  }
}

}  // namespace lowbit::example
