// Keys and values of new tokens into their pages; with q, the step between the QKV projection and prefill
// attention: norm, RoPE, append, and q, k, v out, each byte read once. A warp owns a head of a token.
#pragma once

#include "head.cuh"

namespace lowbit::kernels::kv_cache {

LOWBIT_KERNEL(kThreads, 4)
kv4_append_kernel(const AppendParams p) {
  const int kv_heads = p.pages.kv_heads, rows = p.heads + 2 * kv_heads, d = p.pages.d;
  const int64_t item = int64_t(ptx::block_index_x()) * (kThreads / 32) + ptx::warp_index();
  const int64_t token = item / rows;
  if (token >= p.tokens) return;  // whole warps
  int head = int(item - token * rows);
  const bool is_q = head < p.heads, is_k = !is_q && head < p.heads + kv_heads;
  head -= is_q ? 0 : is_k ? p.heads : p.heads + kv_heads;

  const void* from = is_q ? p.q : is_k ? p.key : p.value;
  void* out = is_q ? p.q_out : is_k ? p.k_out : p.v_out;
  const Head h{
      static_cast<const uint8_t*>(from) + (token * p.token_stride + int64_t(head) * d) * size_of(p.dtype),
      p.dtype, d,
      is_q   ? p.rotation.q_norm
      : is_k ? p.rotation.k_norm
             : nullptr};
  Rotation rotation = p.rotation;
  if (!is_q && !is_k) rotation.cos = nullptr;
  float x[kChunk];
  load_head(x, h, rotation, token);
  if (out) {
    const int64_t row = token * (is_q ? p.heads : kv_heads) + head;
    store_chunk<true>(static_cast<uint8_t*>(out) + row * d * size_of(p.dtype), p.dtype,
                      ptx::lane_index() * kChunk, d, x);
  }
  if (is_q) return;
  const int64_t slot = ptx::ld_global<ptx::Load::kNc>(p.slots + token);
  if (is_k) transform_head(x, rotation.key_block, rotation.key_scale);
  const Quantised q = quantise_head(x, d, p.clip);
  if (slot < 0 || slot >= p.pages.slots) return;
  if (is_k) store_head(q, p.pages.key_codes, p.pages.key_params, row_of(p.pages, slot, head), d);
  else store_head(q, p.pages.value_codes, p.pages.value_params, row_of(p.pages, slot, head), d);
}

}  // namespace lowbit::kernels::kv_cache
