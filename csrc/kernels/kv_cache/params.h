// INT4 keys and values on CUDA: what the kernels take. No torch. The numbers are those of cpu/kv_cache-inl.h.
#pragma once

#include <cstdint>

#include "../../numeric/dtype.h"
#include "../common/device.h"
#include "../quantize/params.h"

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

// The paged cache of one layer. Codes [pages, kv_heads, page, d / 2], parameters (scale, zero) as fp16 pairs
// [pages, kv_heads, page]; codes lie on 16 bytes, parameters on 4.
struct Pages {
  uint8_t *key_codes, *value_codes;
  uint32_t *key_params, *value_params;
  int64_t slots;        // pages * page
  int32_t page_shift;   // log2 of page: 4 to 8
  int32_t kv_heads, d;  // d: a multiple of 8, at most 256
};

// What happens to a head of q or k before it is quantised or multiplied. Without norm and RoPE it stays as it
// is; with them it is rounded to its dtype after them.
struct Rotation {
  const float *cos, *sin;        // [tokens, rotary] or null: no RoPE
  int32_t rotary;                // even, at most d
  const float *q_norm, *k_norm;  // [d] or null: no norm
  float eps;
  int32_t key_block;  // Hadamard of that power of two; 1: none
  float key_scale;    // 1 / sqrt(key_block)
};

// Keys and values of `tokens` tokens into their slots; with q_out the heads go there too, after RoPE.
struct AppendParams {
  DType dtype;
  int32_t tokens, heads;        // heads of q: 0 without q
  const void *q, *key, *value;  // [tokens, heads or kv_heads, d]; heads are dense and on 16 bytes
  int64_t token_stride;         // elements between tokens of q, key and value
  void *q_out, *k_out, *v_out;  // dense, or null
  const int64_t* slots;         // [tokens]; outside of [0, pages.slots): not stored
  Rotation rotation;
  float clip;
  Pages pages;
};

Error kv4_append_launch(const AppendParams& p, const Device& device, Stream stream);

// Attention of one query token per sequence over its cache.
struct AttentionParams {
  DType dtype;           // of q and y
  int32_t batch, heads;  // query heads; query head h reads kv head h / (heads / kv_heads)
  const void* q;         // [batch, heads, d]; appending: [batch, heads + 2 kv_heads, d], k and v behind q
  void* y;               // [batch, heads, d]
  const int32_t* table;  // [batch, max_pages]
  int32_t max_pages;
  const int32_t* lengths;  // [batch] tokens stored
  float softmax_scale;
  bool append;        // the token of q is appended, and attended to
  Rotation rotation;  // when appending
  float clip;         // when appending
  // Exact tokens before those of every sequence, fp32 [prefix, kv_heads, d] on 16 bytes; null where there are
  // none.
  const float *prefix_key, *prefix_value;
  int32_t prefix;  // at most kMaxPrefix
  Pages pages;
  // Appending: the rows of y to codes in the same launch, where codes.q is not null.
  quantize::Adjust adjust;
  quantize::Output codes;
  int32_t columns;  // of codes
  // workspace (config.h)
  float* partial;
  uint32_t* tickets;  // zero before and after
};

Error kv4_attention_launch(const AttentionParams& p, const Device& device, Stream stream);

}  // namespace lowbit::kernels::kv_cache
