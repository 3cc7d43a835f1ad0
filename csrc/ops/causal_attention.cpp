// Attention of a prompt on the CPU: each query to the keys up to its own.
#include <numeric>

#include "kv_paged_cpu.h"

namespace lowbit::ops {
namespace {

constexpr int64_t kTokensAtOnce = 64;  // of a sequence, where every token is one of decode attention

// Every query is a sequence of its own that ends with its key: what `kv_attend` gives, bit for bit.
void attend_one_by_one(const cpu::CausalAttentionParams& c) {
  std::vector<int32_t> pages(size_t(ceil_div(c.keys, cpu::kKvSplit)));
  std::iota(pages.begin(), pages.end(), 0);
  const int64_t element = c.dtype == DType::f32 ? 4 : 2, row = c.heads * c.d * element;
  const int64_t keys = c.keys * c.kv_heads * c.d * element;  // bytes of a sequence
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t first = 0; first < c.queries; first += kTokensAtOnce) {
      const int64_t count = c.queries - first < kTokensAtOnce ? c.queries - first : kTokensAtOnce;
      std::vector<int64_t> tokens(size_t(count), 0);
      std::iota(tokens.begin(), tokens.end(), c.keys - c.queries + first + 1);
      const Plan plan(std::move(tokens));
      cpu::KvFloatAttentionParams p{};
      p.cache = {static_cast<char*>(const_cast<void*>(c.k)) + b * keys,
                 static_cast<char*>(const_cast<void*>(c.v)) + b * keys,
                 int64_t(pages.size()),
                 c.kv_heads,
                 cpu::kKvSplit,
                 c.d};
      p.dtype = c.dtype, p.batch = count, p.heads = c.heads, p.softmax_scale = c.softmax_scale;
      p.block_table = pages.data();  // the same for all
      const int64_t at = (b * c.queries + first) * row;
      p.q = static_cast<const char*>(c.q) + at, p.y = static_cast<char*>(c.y) + at;
      attend(p, plan, nullptr, kFloatAttention);
    }
}

void check_result(const char* op, const Tensor& y) {
  const Tensor wide = torch::stable::to(y, ScalarType::Float);
  const float* value = values<float>(wide);
  const int64_t queries = y.size(1), row = y.size(2) * y.size(3);
  for (int64_t i = 0; i < y.numel(); ++i)
    check(value[i] - value[i] == 0, op, ": q, k or v has NaN or infinity for query ", i / row % queries,
          " of sequence ", i / row / queries, ", expected finite values (LOWBIT_CHECKED)");
}

Tensor causal_attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, double softmax_scale) {
  constexpr const char* op = "causal_attention";
  cpu::CausalAttentionParams p{};
  p.dtype = float_dtype(q_in.scalar_type(), op, "q");
  check_dtype(k_in, q_in.scalar_type(), op, "k");
  check_dtype(v_in, q_in.scalar_type(), op, "v");
  check(q_in.dim() == 4, op, ": q has ", q_in.dim(),
        " dimensions, expected 4: [batch, queries, heads, head size]");
  check(k_in.dim() == 4, op, ": k has ", k_in.dim(),
        " dimensions, expected 4: [batch, keys, kv_heads, head size]");
  const Tensor q = as_contiguous(q_in), k = as_contiguous(k_in), v = as_contiguous(v_in);
  p.batch = q.size(0), p.queries = q.size(1), p.heads = q.size(2), p.d = q.size(3);
  p.keys = k.size(1), p.kv_heads = k.size(2);
  check_head_size(op, p.d);
  check_shape(k, {p.batch, p.keys, p.kv_heads, p.d}, op, "k");
  check_shape(v, shape_of(k), op, "v");
  check(p.kv_heads > 0 && p.heads > 0 && p.heads % p.kv_heads == 0, op, ": q has ", p.heads,
        " heads, expected a positive multiple of those of k, ", p.kv_heads);
  check(p.keys >= p.queries, op, ": k has ", p.keys, " keys, expected one for each of the ", p.queries,
        " queries at least");
  Tensor y = empty(shape_of(q), q.scalar_type());
  if (!y.numel()) return y;
  p.q = q.const_data_ptr(), p.k = k.const_data_ptr(), p.v = v.const_data_ptr();
  p.y = y.mutable_data_ptr(), p.softmax_scale = float(softmax_scale), p.threads = threads();

  const cpu::Kernels& kernels = cpu::active();
  const cpu::CausalWork work = kernels.causal_work ? kernels.causal_work(p) : cpu::CausalWork{};
  if (work.items) {
    Workspace space(work.packed + p.threads * work.scratch);
    p.packed = space.as<uint8_t>();
    parallel(work.pieces, 8,
             [&](int64_t, int64_t begin, int64_t end) { kernels.causal_pack(p, begin, end); });
    parallel(work.items, 2, [&](int64_t thread, int64_t begin, int64_t end) {
      kernels.causal_items(p, p.packed + work.packed + thread * work.scratch, begin, end);
    });
  } else {
    attend_one_by_one(p);
  }
  if (checked_mode()) check_result(op, y);
  return y;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&lowbit::ops::causal_attention));
}
