"""Mutants of the paged KV cache and its attention: file in csrc, old, new."""

_ATTENTION, _PAGED, _OPS, _EXP = (
    "cpu/attention-inl.h", "cpu/kv_paged-inl.h", "ops/kv_paged_cpu.h", "cpu/exp-inl.h",
)  # fmt: skip
_SOFTMAX, _FLOAT = "cpu/split_softmax-inl.h", "cpu/float_attention-inl.h"

EDITS = [
    # the place of a nibble, and what a key is besides its codes
    (_ATTENTION, "1.f / 256, 1.f / 4096}", "1.f / 256, 1.f / 4095}"),
    (_ATTENTION, "+ s.zero[t + i] * sum[h];", "+ s.zero[t + i] * sum[0];"),
    # the registers past the last token of a split
    (_ATTENTION, "for (; at % 16; ++at) s.scale[at] = s.zero[at] = 0.f;", ""),
    (_SOFTMAX, "t < padded; ++t) score[t] = 0.f;", "t < padded - 1; ++t) score[t] = 0.f;"),
    # the largest score, of a split and of all
    (_SOFTMAX, "*most = lane_max(top);", "*most = score[0];"),
    (_SOFTMAX, "exponential(set1(partial[0] - most))", "exponential(set1(most - most))"),
    (_SOFTMAX, "sum = sum + t[0] * partial[1];", "sum = sum + partial[1];"),
    # which page, which head, which sequence
    (_SOFTMAX, "p.max_pages + (begin + t) / page]", "p.max_pages + t / page]"),
    (_SOFTMAX, "first = head * group + h,", "first = head + h * kv_heads,"),
    (_SOFTMAX, "while (p.first_split[b + 1] <= split) ++b;", "while (p.first_split[b + 1] < split) ++b;"),
    (_ATTENTION, "multiply_add(acc[h][j], v, weight[h][at]);", "multiply_add(acc[h][j], v, weight[0][at]);"),
    (_EXP, "set1(1.3981999507e-3f)", "set1(1.3981999507e-2f)"),
    # exact tokens before the others: each one, once, even if there are no others
    (_ATTENTION, "x[i] * prefix.key[t * prefix.stride + i]", "x[i] * prefix.key[i]"),
    (_ATTENTION, "if (p.prefix && split == 0)", "if (p.prefix)"),
    (_OPS, "splits || !prefix ? splits : 1", "splits"),
    # what is stored, and where
    (_PAGED, "if (slot < 0) return;\n  const Kv4Pages", "if (slot <= 0) return;\n  const Kv4Pages"),
    (_PAGED, "if (!is_key || p.key_block == 1)", "if (p.key_block == 1)"),
    (_PAGED, "append(rounded, slot, kv_head, true);", "append(from, slot, kv_head, true);"),
    (_PAGED, "low = sub(mul(a, at(cos + i))", "low = add(mul(a, at(cos + i))"),
    (_EXP, "if (n % 2) v[n / 2] = v[n - 1];", ""),
    # tables that lie
    (_OPS, "t.max_pages * page_size - more;", "t.max_pages * page_size;"),
    (_OPS, "page >= 0 && page < pages, op", "page >= 0 && page <= pages, op"),
    # pages of floats: where a token goes and is, the last block of a head, its elements that are not there
    (_PAGED, "to + (slot * p.kv_heads + head) * p.d", "to + slot * p.kv_heads * p.d"),
    (_FLOAT, "page * c.page * stride + head * d;", "page * c.page * stride;"),
    (_FLOAT, "if (d - b * kBlock >= kBlock) return", "if (d >= kBlock) return"),
    (_FLOAT, "size_t(d - b * kBlock) * sizeof(T)", "kBlock * sizeof(T)"),
    (_FLOAT, "multiply_add(acc[h][j], v, weight[h][at]);", "multiply_add(acc[h][j], v, weight[0][at]);"),
    (_FLOAT, "for (; b < blocks; ++b) weigh_values", "for (; b < blocks - 1; ++b) weigh_values"),
]

_HEAD, _APPEND = "kernels/kv_cache/head.cuh", "kernels/kv_cache/append.cuh"
_ATTEND, _STAGING = "kernels/kv_cache/attention.cuh", "kernels/kv_cache/staging.cuh"
_MERGE = "kernels/kv_cache/merge.cuh"

CUDA_EDITS = [
    # the sign of the half that RoPE turns; the rounding that the append and the query share
    (_HEAD, "turned = lane < half ? -other : other", "turned = other"),
    (_HEAD, "  round_chunk(x, h.dtype);\n}", "}"),
    # the token that is appended: stored by each group of query heads
    (_ATTEND, "put_token(w, p, fresh, group == 0)", "put_token(w, p, fresh, true)"),
    # the barrier between reading the keys and putting weights in their place
    (_ATTEND, "ptx::syncthreads();  // the keys become the weights", ""),
    # the keys' wait
    (_ATTEND, "ptx::cp_async_wait_group<1>();", "ptx::cp_async_wait_group<2>();"),
    # bits of float32 queries past the first fp16
    (_ATTEND, "score(w, tokens, p.dtype == DType::f32);", "score(w, tokens, false);"),
    # tokens that are not there
    (_STAGING, "first + row < w.stored ? S::kPiece : 0", "S::kPiece"),
    # slots that the cache does not have; a bit of the nibble above
    (_APPEND, "slot < 0 || slot >= p.pages.slots", "slot < 0"),
    (_STAGING, "0x03c003c0u", "0x03e003c0u"),
    (_STAGING, "sum * kCode,", "sum,"),
    # exact tokens: in the first split alone, and in the sum
    (_ATTEND, "split == 0 ? p.prefix : 0", "p.prefix"),
    (_ATTEND, "sum = ptx::add_rn(sum, warp_sum(exact));", ""),
    # a row of codes before all of its heads are there
    (_ATTEND, "p.pages.kv_heads * a.c.groups, w.flag()", "p.pages.kv_heads, w.flag()"),
    # who is last, and the largest score of all splits
    (_MERGE, "!= uint32_t(blocks - 1)) return false;", "!= 0) return false;"),
    (_MERGE, "m = warp_max(m);", "m = ptx::add_rn(m, 0.f);"),
]
