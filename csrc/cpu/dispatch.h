// The seam between ops and kernels: plain structs of pointers, and one table of functions per instruction
// set.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../numeric/dtype.h"
#include "../numeric/format.h"
#include "../numeric/fp4_table.h"

namespace lowbit::cpu {

// A Hadamard matrix H_K as the kernels use it: row j, four columns 4g..4g+3 at a time. Their signed sum is
// sign * combination, one of the eight (x0 +- x1) +- (x2 +- x3): bit 2 of its number is the sign of x1, bit 1
// that of x3 and bit 0 the middle one.
struct MixTable {
  const uint8_t* combination;  // [K, K/4], 0..7
  const float* sign;           // [K, K/4], +-1
  bool transposed;             // of H^T
};

// Quantises rows of x [rows, k] (row r at x + r * x_stride elements), per token and symmetric.
struct QuantizeParams {
  const void* x;
  DType x_dtype;
  int64_t k, x_stride;
  const float* shift;  // [k] subtracted first, or null
  // Hadamard before quantising: order = K * two over each block of k; order 0 = none
  int64_t order, two;
  const MixTable* mix;  // of H_K, null when K = 1
  int bits;             // 4 or 8: qmax 7 or 127
  float clip;
  bool packed;  // bits 4 only: q holds nibbles, q_stride = ceil(k / 2)
  void* q;      // int8 [rows, q_stride] or packed uint8
  int64_t q_stride;
  float* scale;  // [rows]
};

// Quantises rows of x [rows, k], contiguous, to FP4 codes.
struct QuantizeFp4Params {
  const void* x;
  DType x_dtype;
  int64_t k;
  const float* power;  // [k] powers of two that multiply x first, or null
  Format format;
  float clip;
  float fixed_scale;  // of every row, or 0: max |x| * clip / the format's largest value
  uint8_t* q;         // [rows, ceil(k / 2)] nibbles
  float* scale;       // [rows]
};

// y = scale * (H_K x H_two) x over each `order` = K * two of n; x and y [rows, n] contiguous, may be the same
// memory.
struct HadamardParams {
  const void* x;
  void* y;
  DType dtype;
  int64_t n, order, two;
  const MixTable* mix;  // of H_K, null when K = 1
  float scale;
};

// y[m, n] = float(sum_k x[m, k] w[n, k]) * (w_scale[n] * w_factor) (* x_scale[m]) (+ bias[n])
//           (+ low_rank[m, r] * low_rank_up[r, n], r = 0, 1, ...) (+ residual[m, n])
struct GemmParams {
  int64_t m, n, k;
  const uint8_t* weight;       // tiles, layout/weight_tile.h
  bool weight_int8;            // false: nibbles
  const Fp4Table* fp4;         // what the nibbles stand for, or null: int4
  const uint8_t* group_scale;  // [N/16, G, 16] in 1..16, or null
  int64_t group;               // k per group, multiple of 8; ignored without group_scale
  const int8_t* x;             // [m, x_stride]: codes, zero past k up to a multiple of 8
  int64_t x_stride;
  int max_code;  // promised: |x| <= 8 (int4), 127 (quantize_int8), 128 (any int8), or an Fp4Table's max
  const float* w_scale;      // [n]
  float w_factor = 1;        // a power of two
  const float* x_scale;      // [m] or null
  const float* bias;         // [n] or null
  int64_t rank;              // 0: no low-rank term
  const float* low_rank;     // [m, rank]
  const float* low_rank_up;  // [rank, n]
  const void* residual;      // [m, n] of y's dtype, or null; may be y itself
  void* y;                   // [m, n]
  DType y_dtype;
  int32_t* panels;  // workspace of gemm_panel_words(p) words, 64-byte aligned
};

// y[m, n] = (sum_k x[m, k] value(weight[n, k])) * w_scale[n] (+ bias[n]) (+ residual[m, n]), groups weighted
// by their scales
struct FpGemmParams {
  int64_t m, n, k;
  Format format;
  const uint8_t* weight;       // tiles, layout/fp_tile.h
  const uint8_t* group_scale;  // [N/16, G, 16] e8m0 or fp16, or null
  bool scale_fp16;
  int64_t group;  // k per group, 32, 64 or 128; ignored without group_scale
  DType dtype;    // of x and y
  const void* x;  // [m, k]
  const float* w_scale;
  const float* bias;     // [n] or null
  const void* residual;  // [m, n] of dtype or null
  void* y;               // [m, n]
  float* panels;         // workspace of fp_panel_words(p) words, 64-byte aligned
  bool split;            // go through bf16: only where fp_prefers_split and every fp_pack agreed
};

// codes[i] = nearest code of a minifloat to x[i]
struct EncodeParams {
  const void* x;
  DType dtype;
  Format format;
  bool ties_away;
  uint8_t* codes;
};

struct Kv4Params {
  const void* x;  // quantise: input; dequantise: unused
  void* y;        // dequantise: output
  DType dtype;
  int64_t d;
  float clip;
  uint8_t* packed;   // [rows, ceil(d / 2)]
  uint16_t* params;  // fp16 [rows, 2]: scale, zero
};

// How n values of a row become k codes: picked by index, times inverse_step, minus shift, rounded.
struct RowCodesParams {
  int64_t k;
  const int32_t* index;       // [k] in 0..n-1, or null: k = n
  const float* inverse_step;  // [k] or null
  const float* shift;         // [k] or null
  bool floats;                // no codes: the values [rows, k] in the dtype of x, whatever the next three say
  int bits;                   // 4: nibbles [rows, ceil(k / 2)]; 8: int8 [rows, k]
  bool static_scale;          // else per token, as QuantizeParams
  float clip;                 // per token only
  void* q;
  float* scale;  // [rows]; static: null, or set to NaN for rows with NaN or infinity, else 1
};

// A fused row op. The values of a row of x [rows, n] are x, normalised x, or activation(gate) * up.
struct FusedRowsParams {
  const void* x;  // gated: [rows, 2 n], a row's gates before its ups
  DType dtype;    // of x, residual and sum
  int64_t n;
  // rms_norm_quantize: (s[index[j]] / rms(s)) * (weight[j] + gain_offset) with s = x (+ residual, kept as
  // sum)
  const void* residual;  // [rows, n] or null
  void* sum;             // [rows, n] with residual
  const float* weight;   // [k]
  float eps, gain_offset;
  bool gelu;  // gated_quantize: gelu_tanh instead of silu
  // the others: Hadamard of the values, as QuantizeParams
  int64_t order, two;
  const MixTable* mix;
  RowCodesParams codes;
};

// The paged INT4 cache of one layer: codes [pages, kv_heads, page, ceil(d / 2)], fp16 params [..., 2]. Token
// `slot` is in page slot / page, at slot % page.
struct Kv4Pages {
  uint8_t *key_codes, *value_codes;
  uint16_t *key_params, *value_params;
  int64_t pages, kv_heads, page, d;
};

// Quantises keys and values into their slots. Rows are heads of tokens.
struct Kv4AppendParams {
  Kv4Pages cache;
  DType dtype;
  const void *key, *value;  // [T, kv_heads, d]
  const int64_t* slots;     // [T], negative: skipped
  int64_t key_block;        // keys are transformed in blocks of this first; 1: not
  float key_scale, clip;
};

// RMSNorm of each q and k head, RoPE of the first `rotary` elements, one rounding to dtype; k and v are
// appended to a cache.
struct KvRopeParams {
  DType dtype;
  const void* qkv;  // [T, (heads + 2 kv_heads) d]; the rows are its heads
  int64_t heads, kv_heads, d, rotary;
  const float *cos, *sin;        // [T, rotary]
  const float *q_norm, *k_norm;  // [d] or null: no norm
  float eps;
  const int64_t* slots;  // [T], negative: skipped
  void *q, *k, *v;       // [T, heads, d], [T, kv_heads, d]; k and v may be null
};
struct Kv4RopeParams : KvRopeParams {
  Kv4AppendParams append;  // what becomes of a head: cache, transform and clip
  bool transform_q;        // q gets the transform of the keys
};

// Keys and values as they are: dtype [pages, page, kv_heads, d]. Slots as in Kv4Pages.
struct KvFloatPages {
  void *key, *value;
  int64_t pages, kv_heads, page, d;
};
struct KvFloatRopeParams : KvRopeParams {
  KvFloatPages cache;
};

// Attention of one query token per sequence. A sequence is cut into splits of kKvSplit tokens; every split
// leaves a partial result, and merging them is a step of its own.
constexpr int64_t kKvSplit = 256;
constexpr int64_t kKvPrefix = 16;  // exact tokens, at most
template <class Pages>
struct KvAttentionParams {
  Pages cache;
  DType dtype;
  int64_t batch, heads;
  const void* q;               // [batch, heads, d]
  void* y;                     // the same
  const int32_t* block_table;  // [batch, max_pages]
  int64_t max_pages;
  const int64_t* tokens;       // [batch]
  const int64_t* first_split;  // [batch + 1]: sequence b has splits first_split[b] .. first_split[b + 1]
  float softmax_scale;
  float* partial;  // Kernels::*_partial_floats for every split and query head
};
// Result of a split for one query head: max and sum of the probabilities, then the weighted values.
constexpr int64_t kKvPartialHead = 16;
struct Kv4AttentionParams : KvAttentionParams<Kv4Pages> {
  // Exact tokens before those of every sequence: its first split, which it then always has, takes them too.
  const float *prefix_key, *prefix_value;  // [prefix, kv_heads, d]
  int64_t prefix;
};
using KvFloatAttentionParams = KvAttentionParams<KvFloatPages>;  // of the dtype of the pages

// Attention of the last `queries` tokens of each sequence, each to the keys up to its own.
struct CausalAttentionParams {
  DType dtype;
  int64_t batch, heads, kv_heads, d, queries, keys;
  const void *q, *k, *v;  // [batch, queries, heads, d], [batch, keys, kv_heads, d]
  void* y;                // as q
  float softmax_scale;
  int64_t threads;
  uint8_t* packed;  // workspace, 64-byte aligned
};
// What it takes: bytes of workspace, of all and of a thread, pieces to pack, then items to do; no items:
// another way.
struct CausalWork {
  int64_t packed, scratch, pieces, items;
};

struct Kernels {
  const char* name;
  // scratch: gives the floats of workspace that one thread needs
  int64_t (*quantize_scratch)(const QuantizeParams&);
  void (*quantize_rows)(const QuantizeParams&, float* scratch, int64_t row_begin, int64_t row_end);
  void (*unpack_nibbles)(const uint8_t* from, int64_t bytes, int8_t* to);  // of int4
  void (*quantize_fp4_rows)(const QuantizeFp4Params&, int64_t row_begin, int64_t row_end);
  int64_t (*hadamard_scratch)(const HadamardParams&);
  void (*hadamard_rows)(const HadamardParams&, float* scratch, int64_t row_begin, int64_t row_end);
  int64_t (*gemm_panel_words)(const GemmParams&);
  int64_t (*gemm_panel_count)(const GemmParams&);
  void (*gemm_pack)(const GemmParams&, int64_t panel_begin, int64_t panel_end);
  void (*gemm_tiles)(const GemmParams&, int64_t tile_begin, int64_t tile_end);  // tiles of 16 channels
  int64_t (*fp_panel_words)(const FpGemmParams&);
  int64_t (*fp_panel_count)(const FpGemmParams&);
  bool (*fp_prefers_split)(const FpGemmParams&);
  bool (*fp_pack)(const FpGemmParams&, int64_t panel_begin, int64_t panel_end);
  void (*fp_tiles)(const FpGemmParams&, int64_t tile_begin, int64_t tile_end);  // tiles of 16 channels
  void (*encode_fp)(const EncodeParams&, int64_t begin, int64_t end);
  void (*kv4_quantize_rows)(const Kv4Params&, int64_t row_begin, int64_t row_end);
  void (*kv4_dequantize_rows)(const Kv4Params&, int64_t row_begin, int64_t row_end);
  int64_t (*fused_rows_scratch)(const FusedRowsParams&);
  void (*static_rows)(const FusedRowsParams&, float* scratch, int64_t row_begin, int64_t row_end);
  void (*norm_rows)(const FusedRowsParams&, float* scratch, int64_t row_begin, int64_t row_end);
  void (*gated_rows)(const FusedRowsParams&, float* scratch, int64_t row_begin, int64_t row_end);
  void (*kv4_append_rows)(const Kv4AppendParams&, int64_t row_begin, int64_t row_end);
  void (*kv4_rope_rows)(const Kv4RopeParams&, int64_t row_begin, int64_t row_end);
  int64_t (*kv4_partial_floats)(const Kv4AttentionParams&);
  // items are splits times kv_heads; rows are sequences times heads
  void (*kv4_attend_items)(const Kv4AttentionParams&, int64_t item_begin, int64_t item_end);
  void (*kv4_merge_rows)(const Kv4AttentionParams&, int64_t row_begin, int64_t row_end);
  void (*kv_rope_rows)(const KvFloatRopeParams&, int64_t row_begin, int64_t row_end);
  int64_t (*kv_partial_floats)(const KvFloatAttentionParams&);
  void (*kv_attend_items)(const KvFloatAttentionParams&, int64_t item_begin, int64_t item_end);
  void (*kv_merge_rows)(const KvFloatAttentionParams&, int64_t row_begin, int64_t row_end);
  // null without tiles
  CausalWork (*causal_work)(const CausalAttentionParams&);
  void (*causal_pack)(const CausalAttentionParams&, int64_t piece_begin, int64_t piece_end);
  void (*causal_items)(const CausalAttentionParams&, uint8_t* scratch, int64_t item_begin, int64_t item_end);
};

struct Isa {
  const char* name;
  const char* features;  // what the CPU must have, in words
  bool supported;
  const Kernels* kernels;
};

// Best last. The choice is made once: LOWBIT_FORCE_ISA if set, else the last supported entry.
const std::vector<Isa>& isa_table();
const Kernels& active();
// Switches at run time (tests, benches); throws std::runtime_error naming what exists.
void set_active(const std::string& name);

// H_k with H H^T = k I, or its transpose, kept for the life of the process; null where no construction is
// known. k is a multiple of 4.
const MixTable* mix_table(int64_t k, bool transpose);
// order = K * two with the smallest constructible K; false where there is none.
bool split_order(int64_t order, int64_t* k, int64_t* two);

}  // namespace lowbit::cpu
