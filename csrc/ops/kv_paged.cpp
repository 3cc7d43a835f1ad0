// The paged INT4 KV cache on the CPU: appending, with and without norm and RoPE, and decode attention.
#include "fused_rows.h"
#include "kv_paged_cpu.h"

namespace lowbit::ops {
namespace {

constexpr Attention<cpu::Kv4AttentionParams> kAttention{
    &cpu::Kernels::kv4_partial_floats, &cpu::Kernels::kv4_attend_items, &cpu::Kernels::kv4_merge_rows};

cpu::Kv4Pages pages_of(const Kv4Pages& c, bool written) {
  cpu::Kv4Pages p{};
  const auto at = [&](const Tensor& t) {
    return written ? t.mutable_data_ptr() : const_cast<void*>(t.const_data_ptr());
  };
  p.key_codes = static_cast<uint8_t*>(at(c.key_codes)),
  p.value_codes = static_cast<uint8_t*>(at(c.value_codes));
  p.key_params = static_cast<uint16_t*>(at(c.key_params));
  p.value_params = static_cast<uint16_t*>(at(c.value_params));
  p.pages = c.pages, p.kv_heads = c.kv_heads, p.page = c.page, p.d = c.d;
  return p;
}

void check_slots(const char* op, const int64_t* slots, int64_t tokens, const Kv4Pages& c) {
  for (int64_t t = 0; t < tokens; ++t)
    check(slots[t] < c.pages * c.page, op, ": slots[", t, "] is ", slots[t], ", expected less than ",
          c.pages * c.page, " (", c.pages, " pages of ", c.page, " tokens)");
}

// LOWBIT_CHECKED=1: what was written into the slots is finite.
void check_appended(const char* op, const char* arg, const int64_t* slots, int64_t tokens,
                    const cpu::Kv4Pages& c) {
  if (!checked_mode()) return;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < c.kv_heads && slots[t] >= 0; ++h) {
      const int64_t at = 2 * (((slots[t] / c.page) * c.kv_heads + h) * c.page + slots[t] % c.page);
      for (const uint16_t* params : {c.key_params, c.value_params})
        check((params[at] & 0x7fff) <= 0x7c00, op, ": ", arg, " has NaN or infinity in row ", t,
              ", expected finite values (LOWBIT_CHECKED)");
    }
}

void append_rows(const cpu::Kv4AppendParams& p, int64_t tokens) {
  parallel(tokens * p.cache.kv_heads, 1 + kRowWork / (2 * p.cache.d),
           [&](int64_t, int64_t begin, int64_t end) { cpu::active().kv4_append_rows(p, begin, end); });
}

void set_prefix(cpu::Kv4AttentionParams& p, const Kv4Prefix& prefix) {
  p.prefix = prefix.tokens, p.prefix_key = floats(prefix.key), p.prefix_value = floats(prefix.value);
}

void kv4_append(Tensor key, Tensor value, Tensor slots, Tensor key_codes, Tensor key_params,
                Tensor value_codes, Tensor value_params, double clip, std::optional<int64_t> key_block) {
  constexpr const char* op = "kv4_append";
  const Kv4Append in(op, key, value, slots, key_codes, key_params, value_codes, value_params, clip,
                     key_block);
  cpu::Kv4AppendParams p{};
  p.cache = pages_of(in.cache, true), p.dtype = in.dtype;
  p.key = in.key.const_data_ptr(), p.value = in.value.const_data_ptr(), p.slots = values<int64_t>(in.slots);
  p.key_block = in.key_block, p.key_scale = key_scale_of(in.key_block), p.clip = in.clip;
  check_slots(op, p.slots, in.tokens, in.cache);
  append_rows(p, in.tokens);
  check_appended(op, "key or value", p.slots, in.tokens, p.cache);
}

cpu::Kv4RopeParams rope_params(const Kv4Qkv& in, const int64_t* slots) {
  cpu::Kv4RopeParams p{};
  set_rope(p, in, slots);
  p.append.cache = pages_of(in.cache, true), p.append.clip = in.clip;
  p.append.key_block = in.key_block, p.append.key_scale = key_scale_of(in.key_block);
  return p;
}

std::tuple<Tensor, Tensor, Tensor> kv4_rope_append(Tensor qkv, Tensor cos, Tensor sin, int64_t heads,
                                                   int64_t kv_heads, Tensor slots_in, Tensor key_codes,
                                                   Tensor key_params, Tensor value_codes, Tensor value_params,
                                                   OptTensor q_norm, OptTensor k_norm, double eps,
                                                   double clip, std::optional<int64_t> key_block) {
  constexpr const char* op = "kv4_rope_append";
  const Kv4Qkv in(op, qkv, cos, sin, heads, kv_heads, key_codes, key_params, value_codes, value_params,
                  q_norm, k_norm, eps, clip, key_block);
  const Tensor slots = slots_of(op, slots_in, in.tokens);
  cpu::Kv4RopeParams p = rope_params(in, values<int64_t>(slots));
  check_slots(op, p.slots, in.tokens, in.cache);
  Tensor q = empty({in.tokens, heads, in.d}, qkv.scalar_type());
  Tensor k = empty({in.tokens, kv_heads, in.d}, qkv.scalar_type());
  Tensor v = empty({in.tokens, kv_heads, in.d}, qkv.scalar_type());
  p.q = q.mutable_data_ptr(), p.k = k.mutable_data_ptr(), p.v = v.mutable_data_ptr();
  rope_rows(p, in.tokens, &cpu::Kernels::kv4_rope_rows);
  check_appended(op, "qkv", p.slots, in.tokens, p.append.cache);
  return {q, k, v};
}

Tensor kv4_attention(Tensor q, Tensor key_codes, Tensor key_params, Tensor value_codes, Tensor value_params,
                     Tensor block_table, Tensor lengths, double softmax_scale, OptTensor prefix_k,
                     OptTensor prefix_v) {
  constexpr const char* op = "kv4_attention";
  const Kv4Attention in(op, q, key_codes, key_params, value_codes, value_params, block_table, lengths,
                        softmax_scale, prefix_k, prefix_v);
  const Plan plan(op, in.tables, in.cache.pages, in.cache.page, in.batch, 0, in.prefix.tokens > 0);
  Tensor y = empty(shape_of(in.q), q.scalar_type());
  cpu::Kv4AttentionParams p{};
  p.cache = pages_of(in.cache, false), p.q = in.q.const_data_ptr(), p.y = y.mutable_data_ptr();
  set_attention(p, in.dtype, in.batch, in.heads, in.tables, in.softmax_scale);
  set_prefix(p, in.prefix);
  attend(p, plan, op, kAttention);
  return y;
}

// What kv4_attend and kv4_attend_quantize do alike: [B, heads * D].
Tensor attend_step(const char* op, const Kv4Qkv& in, const KvTables& tables, const Kv4Prefix& prefix,
                   float softmax_scale) {
  const Plan plan(op, tables, in.cache.pages, in.cache.page, in.tokens, 1, prefix.tokens > 0);
  cpu::Kv4AttentionParams p{};
  p.cache = pages_of(in.cache, true);
  set_attention(p, in.dtype, in.tokens, in.heads, tables, softmax_scale);
  set_prefix(p, prefix);
  const std::vector<int64_t> slots = plan.last_slots(tables, in.cache.page);
  cpu::Kv4RopeParams rope = rope_params(in, slots.data());
  Tensor y = empty({in.tokens, in.heads * in.d}, in.qkv.scalar_type());
  Tensor q = empty({in.tokens, in.heads * in.d}, in.qkv.scalar_type());
  rope.q = q.mutable_data_ptr(), rope.transform_q = true;
  rope_rows(rope, in.tokens, &cpu::Kernels::kv4_rope_rows);
  check_appended(op, "qkv", slots.data(), in.tokens, p.cache);
  p.q = q.const_data_ptr(), p.y = y.mutable_data_ptr();
  attend(p, plan, op, kAttention);
  return y;
}

Tensor kv4_attend(Tensor qkv, Tensor cos, Tensor sin, int64_t heads, int64_t kv_heads, Tensor key_codes,
                  Tensor key_params, Tensor value_codes, Tensor value_params, Tensor block_table,
                  Tensor lengths, double softmax_scale, OptTensor q_norm, OptTensor k_norm, double eps,
                  double clip, std::optional<int64_t> key_block, OptTensor prefix_k, OptTensor prefix_v) {
  constexpr const char* op = "kv4_attend";
  const Kv4Qkv in(op, qkv, cos, sin, heads, kv_heads, key_codes, key_params, value_codes, value_params,
                  q_norm, k_norm, eps, clip, key_block);
  const KvTables tables(op, in.tokens, block_table, lengths);
  const Kv4Prefix prefix(op, prefix_k, prefix_v, in.cache);
  return attend_step(op, in, tables, prefix, float(softmax_scale));
}

std::tuple<Tensor, Tensor> kv4_attend_quantize(
    Tensor qkv, Tensor cos, Tensor sin, int64_t heads, int64_t kv_heads, Tensor key_codes, Tensor key_params,
    Tensor value_codes, Tensor value_params, Tensor block_table, Tensor lengths, double softmax_scale,
    int64_t bits, OptTensor q_norm, OptTensor k_norm, double eps, double clip,
    std::optional<int64_t> key_block, OptTensor prefix_k, OptTensor prefix_v, OptTensor inverse_step,
    OptTensor shift, OptTensor index, bool static_scale, double code_clip, bool unpacked) {
  constexpr const char* op = "kv4_attend_quantize";
  const Kv4Qkv in(op, qkv, cos, sin, heads, kv_heads, key_codes, key_params, value_codes, value_params,
                  q_norm, k_norm, eps, clip, key_block);
  const KvTables tables(op, in.tokens, block_table, lengths);
  const Kv4Prefix prefix(op, prefix_k, prefix_v, in.cache);
  const RowCodes codes(op, {in.tokens, heads * in.d}, heads * in.d,
                       {bits, index, inverse_step, shift, static_scale, code_clip, unpacked});
  check_index(op, codes);  // before anything is written
  const Tensor y = attend_step(op, in, tables, prefix, float(softmax_scale));
  return code_rows(op, "qkv", y, in.dtype, codes);
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  using namespace lowbit::ops;
  m.impl("kv4_append", TORCH_BOX(&kv4_append));
  m.impl("kv4_rope_append", TORCH_BOX(&kv4_rope_append));
  m.impl("kv4_attention", TORCH_BOX(&kv4_attention));
  m.impl("kv4_attend", TORCH_BOX(&kv4_attend));
  m.impl("kv4_attend_quantize", TORCH_BOX(&kv4_attend_quantize));
}
