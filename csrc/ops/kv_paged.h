// What the ops of the paged KV caches check alike on every device. Values on a device (slots, block
// tables, lengths) are not looked at here: the CPU ops check them, a CUDA op would have to wait for the card.
#pragma once

#include "common.h"

namespace lowbit::ops {

constexpr int64_t kMaxHeadDim = 512, kMinPage = 16, kMaxPage = 256;

inline bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

inline void check_page(const char* op, const char* arg, int64_t page, int64_t kv_heads) {
  check(power_of_two(page) && page >= kMinPage && page <= kMaxPage, op, ": ", arg, " has pages of ", page,
        " tokens, expected a power of two from ", kMinPage, " to ", kMaxPage);
  check(kv_heads > 0, op, ": ", arg, " has 0 heads, expected at least 1");
}

inline void check_head_size(const char* op, int64_t d) {
  check(d > 0 && d <= kMaxHeadDim, op, ": the head size is ", d, ", expected 1 to ", kMaxHeadDim);
}

// A cache is used where it is.
inline void check_cache(const char* op, const char* arg, const Tensor& t, ScalarType dtype,
                        const Shape& shape) {
  check_dtype(t, dtype, op, arg);
  check_shape(t, shape, op, arg);
  check(t.is_contiguous(), op, ": ", arg, " is not contiguous, expected a contiguous cache");
}

// The caches of one layer, [P, Hkv, page, ceil(D/2)] codes and [P, Hkv, page, 2] parameters.
struct Kv4Pages {
  Tensor key_codes, key_params, value_codes, value_params;
  int64_t pages, kv_heads, page, d, bytes;

  Kv4Pages(const char* op, int64_t head_dim, const Tensor& key_codes_in, const Tensor& key_params_in,
           const Tensor& value_codes_in, const Tensor& value_params_in)
      : key_codes(key_codes_in),
        key_params(key_params_in),
        value_codes(value_codes_in),
        value_params(value_params_in),
        d(head_dim),
        bytes((head_dim + 1) / 2) {
    check_head_size(op, d);
    check(key_codes.dim() == 4, op, ": key_codes has ", key_codes.dim(),
          " dimensions, expected 4: [pages, kv_heads, page, ceil(head size / 2)]");
    pages = key_codes.size(0), kv_heads = key_codes.size(1), page = key_codes.size(2);
    check_page(op, "key_codes", page, kv_heads);
    const Shape codes{pages, kv_heads, page, bytes}, params{pages, kv_heads, page, 2};
    check_cache(op, "key_codes", key_codes, ScalarType::Byte, codes);
    check_cache(op, "value_codes", value_codes, ScalarType::Byte, codes);
    check_cache(op, "key_params", key_params, ScalarType::Half, params);
    check_cache(op, "value_params", value_params, ScalarType::Half, params);
  }
};

// The caches of one layer as floats, [P, page, Hkv, D].
struct KvFloatPages {
  Tensor key, value;
  int64_t pages, page, kv_heads, d;

  KvFloatPages(const char* op, int64_t head_dim, ScalarType dtype, const Tensor& key_in,
               const Tensor& value_in)
      : key(key_in), value(value_in), d(head_dim) {
    check_head_size(op, d);
    check(key.dim() == 4, op, ": key_cache has ", key.dim(),
          " dimensions, expected 4: [pages, page, kv_heads, head size]");
    pages = key.size(0), page = key.size(1), kv_heads = key.size(2);
    check_page(op, "key_cache", page, kv_heads);
    check_cache(op, "key_cache", key, dtype, {pages, page, kv_heads, d});
    check_cache(op, "value_cache", value, dtype, {pages, page, kv_heads, d});
  }
};

// Blocks of the Hadamard that keys get before they are quantised; 1: none.
inline int64_t key_block_of(const char* op, std::optional<int64_t> key_block, int64_t d) {
  if (!key_block) return 1;
  check(power_of_two(*key_block) && d % *key_block == 0, op, ": key_block is ", *key_block,
        ", expected a power of two that divides the head size ", d);
  return *key_block;
}

// 1 / sqrt(block), as lowbit.hadamard gets it.
inline float key_scale_of(int64_t block) { return float(1.0 / __builtin_sqrt(double(block))); }

inline Tensor slots_of(const char* op, const Tensor& slots, int64_t tokens) {
  check_dtype(slots, ScalarType::Long, op, "slots");
  check_shape(slots, {tokens}, op, "slots");
  return as_contiguous(slots);
}

// Arguments of kv4_append.
struct Kv4Append {
  DType dtype;
  Tensor key, value;  // [T, Hkv, D]
  int64_t tokens;
  Tensor slots;  // int64 [T]
  Kv4Pages cache;
  int64_t key_block;
  float clip;

  Kv4Append(const char* op, const Tensor& key_in, const Tensor& value_in, const Tensor& slots_in,
            const Tensor& key_codes, const Tensor& key_params, const Tensor& value_codes,
            const Tensor& value_params, double clip_in, std::optional<int64_t> block)
      : dtype((check_clip(op, clip_in), float_dtype(key_in.scalar_type(), op, "key"))),
        key(as_contiguous(key_in)),
        value((check_dtype(value_in, key_in.scalar_type(), op, "value"), as_contiguous(value_in))),
        tokens((check(key_in.dim() == 3, op, ": key has ", key_in.dim(),
                      " dimensions, expected 3: [tokens, kv_heads, head size]"),
                key_in.size(0))),
        slots(slots_of(op, slots_in, tokens)),
        cache(op, key_in.size(2), key_codes, key_params, value_codes, value_params),
        key_block(key_block_of(op, block, cache.d)),
        clip(float(clip_in)) {
    check_shape(key, {tokens, cache.kv_heads, cache.d}, op, "key");
    check_shape(value, {tokens, cache.kv_heads, cache.d}, op, "value");
  }
};

// qkv [T, (heads + 2 kv_heads) D] on its way through norm and RoPE. q and k are rounded to qkv's dtype once,
// after RoPE; what is stored, and what is multiplied with the keys, are those rounded values, so that the
// fused ops equal the composition of their parts.
struct KvQkv {
  DType dtype;
  Tensor qkv, cos, sin;      // cos, sin: fp32 [T, rotary]
  OptTensor q_norm, k_norm;  // fp32 [D]
  int64_t tokens, heads, kv_heads, d, rotary;
  float eps;

  KvQkv(const char* op, const Tensor& qkv_in, const Tensor& cos_in, const Tensor& sin_in, int64_t heads_in,
        int64_t kv_heads_in, const OptTensor& q_norm_in, const OptTensor& k_norm_in, double eps_in)
      : dtype(float_dtype(qkv_in.scalar_type(), op, "qkv")),
        qkv((check(qkv_in.dim() == 2, op, ": qkv has ", qkv_in.dim(),
                   " dimensions, expected 2: [tokens, (heads + 2 kv_heads) * head size]"),
             as_contiguous(qkv_in))),
        cos((check_dtype(cos_in, ScalarType::Float, op, "cos"), as_contiguous(cos_in))),
        sin((check_dtype(sin_in, ScalarType::Float, op, "sin"), as_contiguous(sin_in))),
        tokens(qkv.size(0)),
        heads(heads_in),
        kv_heads(kv_heads_in),
        d((check(kv_heads > 0 && heads > 0 && heads % kv_heads == 0, op, ": heads is ", heads,
                 ", expected a positive multiple of kv_heads, which is ", kv_heads),
           qkv.size(1) / (heads + 2 * kv_heads))),
        eps(float(eps_in)) {
    check_head_size(op, d);
    check_shape(qkv, {tokens, (heads + 2 * kv_heads) * d}, op, "qkv");
    check(cos.dim() == 2, op, ": cos has ", cos.dim(), " dimensions, expected 2: [tokens, rotary size]");
    rotary = cos.size(1);
    check(rotary % 2 == 0 && rotary <= d, op, ": cos has a last dimension of ", rotary,
          ", expected an even number up to the head size ", d);
    check_shape(cos, {tokens, rotary}, op, "cos");
    check_shape(sin, {tokens, rotary}, op, "sin");
    check(eps_in >= 0, op, ": eps is ", eps_in, ", expected 0 or more");
    q_norm = norm_of(q_norm_in, op, "q_norm"), k_norm = norm_of(k_norm_in, op, "k_norm");
  }

  void check_heads(const char* op, const char* arg, int64_t stored) const {
    check(stored == kv_heads, op, ": kv_heads is ", kv_heads, ", expected ", stored, " as in ", arg);
  }

 private:
  OptTensor norm_of(const OptTensor& weight, const char* op, const char* arg) const {
    if (!weight) return std::nullopt;
    check_dtype(*weight, ScalarType::Float, op, arg);
    check_shape(*weight, {d}, op, arg);
    return as_contiguous(*weight);
  }
};

// What kv4_rope_append and kv4_attend have in common.
struct Kv4Qkv : KvQkv {
  Kv4Pages cache;
  int64_t key_block;
  float clip;

  Kv4Qkv(const char* op, const Tensor& qkv, const Tensor& cos, const Tensor& sin, int64_t heads,
         int64_t kv_heads, const Tensor& key_codes, const Tensor& key_params, const Tensor& value_codes,
         const Tensor& value_params, const OptTensor& q_norm, const OptTensor& k_norm, double eps,
         double clip_in, std::optional<int64_t> block)
      : KvQkv((check_clip(op, clip_in), op), qkv, cos, sin, heads, kv_heads, q_norm, k_norm, eps),
        cache(op, d, key_codes, key_params, value_codes, value_params),
        key_block(key_block_of(op, block, d)),
        clip(float(clip_in)) {
    check_heads(op, "key_codes", cache.kv_heads);
  }
};

// The tokens that each of `batch` sequences has: int32 [batch, max_pages] page numbers, int32 [batch] counts.
struct KvTables {
  Tensor block_table, lengths;
  int64_t max_pages;

  KvTables(const char* op, int64_t batch, const Tensor& block_table_in, const Tensor& lengths_in)
      : block_table(
            (check_dtype(block_table_in, ScalarType::Int, op, "block_table"), as_contiguous(block_table_in))),
        lengths((check_dtype(lengths_in, ScalarType::Int, op, "lengths"), as_contiguous(lengths_in))) {
    check(block_table.dim() == 2, op, ": block_table has ", block_table.dim(),
          " dimensions, expected 2: [sequences, pages]");
    max_pages = block_table.size(1);
    check_shape(block_table, {batch, max_pages}, op, "block_table");
    check_shape(lengths, {batch}, op, "lengths");
  }
};

// Exact keys and values before those of every sequence, keys in the basis of the stored ones: fp32
// [P, Hkv, D], both or none.
struct Kv4Prefix {
  OptTensor key, value;
  int64_t tokens = 0;

  Kv4Prefix(const char* op, const OptTensor& key_in, const OptTensor& value_in, const Kv4Pages& cache) {
    check(bool(key_in) == bool(value_in), op, ": ", key_in ? "prefix_v" : "prefix_k",
          " is None, expected both or none of prefix_k and prefix_v");
    if (!key_in) return;
    check(key_in->dim() == 3, op, ": prefix_k has ", key_in->dim(),
          " dimensions, expected 3: [tokens, kv_heads, head size]");
    tokens = key_in->size(0);
    check(tokens <= cpu::kKvPrefix, op, ": prefix_k has ", tokens, " tokens, expected at most ",
          cpu::kKvPrefix);
    key = part(op, "prefix_k", *key_in, cache), value = part(op, "prefix_v", *value_in, cache);
  }

 private:
  Tensor part(const char* op, const char* arg, const Tensor& t, const Kv4Pages& cache) const {
    check_dtype(t, ScalarType::Float, op, arg);
    check_shape(t, {tokens, cache.kv_heads, cache.d}, op, arg);
    return as_contiguous(t);
  }
};

// Arguments of kv4_attention.
struct Kv4Attention {
  DType dtype;
  Tensor q;  // [B, Hq, D]
  int64_t batch, heads;
  Kv4Pages cache;
  KvTables tables;
  float softmax_scale;
  Kv4Prefix prefix;

  Kv4Attention(const char* op, const Tensor& q_in, const Tensor& key_codes, const Tensor& key_params,
               const Tensor& value_codes, const Tensor& value_params, const Tensor& block_table,
               const Tensor& lengths, double scale, const OptTensor& prefix_k, const OptTensor& prefix_v)
      : dtype(float_dtype(q_in.scalar_type(), op, "q")),
        q((check(q_in.dim() == 3, op, ": q has ", q_in.dim(),
                 " dimensions, expected 3: [sequences, heads, head size]"),
           as_contiguous(q_in))),
        batch(q.size(0)),
        heads(q.size(1)),
        cache(op, q.size(2), key_codes, key_params, value_codes, value_params),
        tables(op, batch, block_table, lengths),
        softmax_scale(float(scale)),
        prefix(op, prefix_k, prefix_v, cache) {
    check(heads % cache.kv_heads == 0, op, ": q has ", heads, " heads, expected a multiple of the ",
          cache.kv_heads, " of key_codes");
  }
};

}  // namespace lowbit::ops
