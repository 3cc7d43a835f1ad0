// Decode attention over pages of keys and values as they are, on the CPU: norm, RoPE, append, attend.
#include "kv_paged_cpu.h"

namespace lowbit::ops {
namespace {

Tensor kv_attend(Tensor qkv, Tensor cos, Tensor sin, int64_t heads, int64_t kv_heads, Tensor key_cache,
                 Tensor value_cache, Tensor block_table, Tensor lengths, double softmax_scale,
                 OptTensor q_norm, OptTensor k_norm, double eps) {
  constexpr const char* op = "kv_attend";
  const KvQkv in(op, qkv, cos, sin, heads, kv_heads, q_norm, k_norm, eps);
  const KvFloatPages cache(op, in.d, qkv.scalar_type(), key_cache, value_cache);
  in.check_heads(op, "key_cache", cache.kv_heads);
  const KvTables tables(op, in.tokens, block_table, lengths);
  const Plan plan(op, tables, cache.pages, cache.page, in.tokens, 1, false);

  cpu::KvFloatAttentionParams p{};
  p.cache = {cache.key.mutable_data_ptr(),
             cache.value.mutable_data_ptr(),
             cache.pages,
             cache.kv_heads,
             cache.page,
             cache.d};
  set_attention(p, in.dtype, in.tokens, heads, tables, softmax_scale);
  Tensor y = empty({in.tokens, heads * in.d}, qkv.scalar_type());
  Tensor q = empty({in.tokens, heads * in.d}, qkv.scalar_type());

  const std::vector<int64_t> slots = plan.last_slots(tables, cache.page);
  cpu::KvFloatRopeParams rope{};
  set_rope(rope, in, slots.data());
  rope.cache = p.cache, rope.q = q.mutable_data_ptr();
  rope_rows(rope, in.tokens, &cpu::Kernels::kv_rope_rows);
  p.q = q.const_data_ptr(), p.y = y.mutable_data_ptr();
  attend(p, plan, op, kFloatAttention);
  return y;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) { m.impl("kv_attend", TORCH_BOX(&lowbit::ops::kv_attend)); }
