"""Mutants of the paged KV cache and its attention on the CPU: file in csrc, old, new."""

_ATTENTION, _PAGED, _OPS, _EXP = (
    "cpu/attention-inl.h", "cpu/kv_paged-inl.h", "ops/kv_paged.cpp", "cpu/exp-inl.h",
)  # fmt: skip

EDITS = [
    # the place of a nibble, and what a key is besides its codes
    (_ATTENTION, "1.f / 256, 1.f / 4096}", "1.f / 256, 1.f / 4095}"),
    (_ATTENTION, "+ s.zero[t + i] * sum[h];", "+ s.zero[t + i] * sum[0];"),
    # the registers past the last token of a split
    (_ATTENTION, "for (; at % 16; ++at) s.scale[at] = s.zero[at] = 0.f;", ""),
    (_ATTENTION, "t < padded; ++t) score[t] = 0.f;", "t < padded - 1; ++t) score[t] = 0.f;"),
    # the largest score, of a split and of all
    (_ATTENTION, "*most = lane_max(top);", "*most = score[0];"),
    (_ATTENTION, "exponential(set1(partial[0] - most))", "exponential(set1(most - most))"),
    (_ATTENTION, "sum = sum + t[0] * partial[1];", "sum = sum + partial[1];"),
    # which page, which head, which sequence
    (_ATTENTION, "p.max_pages + (begin + t) / c.page]", "p.max_pages + t / c.page]"),
    (_ATTENTION, "first = head * group + h;", "first = head + h * kv_heads;"),
    (_ATTENTION, "while (p.first_split[b + 1] <= split) ++b;", "while (p.first_split[b + 1] < split) ++b;"),
    (_ATTENTION, "multiply_add(acc[h][j], v, weight[h][at]);", "multiply_add(acc[h][j], v, weight[0][at]);"),
    (_EXP, "set1(1.3981999507e-3f)", "set1(1.3981999507e-2f)"),
    # what is stored, and where
    (_PAGED, "if (slot < 0) return;", "if (slot <= 0) return;"),
    (_PAGED, "if (!is_key || p.key_block == 1)", "if (p.key_block == 1)"),
    (
        _PAGED,
        "kv4_append_head(to, rounded, slot, kv_head, true);",
        "kv4_append_head(to, x, slot, kv_head, true);",
    ),
    (_PAGED, "low = sub(mul(a, at(cos + i))", "low = add(mul(a, at(cos + i))"),
    (_EXP, "if (n % 2) v[n / 2] = v[n - 1];", ""),
    # tables that lie
    (_OPS, "t.max_pages * c.page - more;", "t.max_pages * c.page;"),
    (_OPS, "page >= 0 && page < c.pages, op", "page >= 0 && page <= c.pages, op"),
]
