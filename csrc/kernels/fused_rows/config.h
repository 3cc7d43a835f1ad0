// How rows are dealt to threads, and what lies in shared memory. Pure functions; tested without a GPU.
#pragma once

#include "../quantize/config.h"
#include "params.h"

namespace lowbit::kernels::fused_rows {

using quantize::Team;

// The squares of 2^20 elements are the sums of 4096 warps: 32 times 128, what a warp adds at a time.
constexpr int64_t kMaxNorm = 1 << 20;
// Half of the quantiser's: a thread that also holds a second operand, or an activation, needs more than 64
// registers for four chunks.
constexpr int kMaxThreads = 512;
constexpr int kMaxWords = 32;  // of the row's maximum, one per warp

// Sums of warps lie 33 apart per 32, so that neither the lanes that write them nor those that read meet.
LOWBIT_HOST_DEVICE constexpr int sum_place(int e) { return e + e / 32; }

struct Config {
  Team team;
  int32_t chunks;  // of codes, per row
  bool wide;       // every row, and all that is read beside it, starts and ends on 16 bytes
  bool wide_store;
  bool staged;           // rows that are gathered from wait in shared memory
  int32_t inputs;        // chunks of values, per row
  int32_t staged_at;     // words
  int32_t staged_words;  // of a row
  int32_t shared_bytes;
  int64_t blocks;
};

inline Config choose(const Params& p, const Device& device) {
  Config c{};
  c.chunks = int32_t(quantize::chunks_of(p.to, p.k_out));
  c.inputs = int32_t(ceil_div(p.k, 8));
  uintptr_t start = 0;
  const void* all[] = {p.x, p.residual, p.sum, p.adjust.index, p.adjust.factor, p.adjust.shift};
  for (const void* each : all) start |= reinterpret_cast<uintptr_t>(each);
  c.wide = quantize::wide_rows(start, p.dtype, p.k, p.k) && p.k_out % 4 == 0;
  c.wide_store = quantize::wide_codes(p.to);
  if (p.to.codes == quantize::Codes::kFloats) c.wide = c.wide && c.wide_store;
  c.team = quantize::team_of(c.inputs > c.chunks ? c.inputs : c.chunks, c.wide, kMaxThreads);
  int64_t words = 0;
  if (c.team.size > 32) {
    words = kMaxWords;
    if (p.kind == Kind::kNorm) words += sum_place(c.team.rounds * c.team.vectors * (c.team.size / 32)) + 1;
  }
  // rows that share a warp lie side by side in the banks
  c.staged_at = int32_t(words);
  c.staged_words = int32_t(ceil_div(int64_t(c.inputs) * 8, 32) * 32 + (c.team.size < 32 ? c.team.size : 0));
  const int64_t with_rows = c.staged_at + int64_t(c.team.rows) * c.staged_words;
  c.staged = p.adjust.index && c.team.rounds == 1 && with_rows * 4 <= device.shared_bytes;
  c.shared_bytes = int32_t((c.staged ? with_rows : words) * 4);
  c.blocks = ceil_div(p.rows, c.team.rows);
  return c;
}

inline Error check(const Params& p) {
  if (p.k > quantize::kMaxRow / 2) return "fused_rows: a row has more than 2^29 elements";
  if (p.kind == Kind::kNorm && p.k > kMaxNorm) return "rms_norm_quantize: a row has more than 2^20 elements";
  if (!p.adjust.index && p.k_out != p.k) return "fused_rows: without an index there is a code per element";
  if (p.adjust.index && p.k == 0 && p.k_out) return "fused_rows: an index into rows of no elements";
  if (p.kind == Kind::kPlain && p.to.codes == quantize::Codes::kFloats)
    return "fused_rows: floats leave a norm or a gate";
  if (!p.to.scale && p.to.clip != 0) return "fused_rows: static codes have clip 0";
  return quantize::check_output(p.to, p.k_out);
}

// What the kernels get.
struct Launch {
  Params p;
  Config c;
};

}  // namespace lowbit::kernels::fused_rows
