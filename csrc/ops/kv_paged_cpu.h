// Steps of the paged caches' ops on the CPU that are the same for 4-bit pages and for floats.
#pragma once

#include "kv_paged.h"

namespace lowbit::ops {

constexpr int64_t kRowWork = 16384, kItemWork = 65536;  // elements that are worth a thread

template <class T>
inline T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
inline const T* values(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// How many tokens each sequence attends to, and where its splits begin.
struct Plan {
  std::vector<int64_t> tokens, first_split;
  int64_t longest = 0;

  // Splits of sequences of so many tokens, at least one each.
  explicit Plan(std::vector<int64_t> tokens_in) : tokens(std::move(tokens_in)), first_split{0} {
    for (const int64_t n : tokens) {
      first_split.push_back(first_split.back() + ceil_div(n, cpu::kKvSplit));
      longest = n > longest ? n : longest;
    }
  }
  // more: tokens that come on top of `lengths`; prefix: whether there is one, which needs a split
  Plan(const char* op, const KvTables& t, int64_t pages, int64_t page_size, int64_t batch, int64_t more,
       bool prefix)
      : tokens(size_t(batch)), first_split(size_t(batch + 1)) {
    const int32_t *lengths = values<int32_t>(t.lengths), *table = values<int32_t>(t.block_table);
    const int64_t room = t.max_pages * page_size - more;
    for (int64_t b = 0; b < batch; ++b) {
      check(lengths[b] >= 0 && lengths[b] <= room, op, ": lengths[", b, "] is ", lengths[b],
            ", expected 0 to ", room, " (block_table has ", t.max_pages, " pages of ", page_size, " tokens)");
      tokens[size_t(b)] = lengths[b] + more;
      for (int64_t i = 0; i * page_size < lengths[b] + more; ++i) {
        const int64_t page = table[b * t.max_pages + i];
        check(page >= 0 && page < pages, op, ": block_table[", b, ", ", i, "] is ", page,
              ", expected a page from 0 to ", pages - 1);
      }
      const int64_t splits = ceil_div(lengths[b] + more, cpu::kKvSplit);
      first_split[size_t(b + 1)] = first_split[size_t(b)] + (splits || !prefix ? splits : 1);
      longest = tokens[size_t(b)] > longest ? tokens[size_t(b)] : longest;
    }
  }

  // Where the last token of each sequence is.
  std::vector<int64_t> last_slots(const KvTables& t, int64_t page_size) const {
    std::vector<int64_t> slots(tokens.size());
    const int32_t* table = values<int32_t>(t.block_table);
    for (size_t b = 0; b < tokens.size(); ++b) {
      const int64_t at = tokens[b] - 1;
      slots[b] = table[int64_t(b) * t.max_pages + at / page_size] * page_size + at % page_size;
    }
    return slots;
  }
};

inline void set_rope(cpu::KvRopeParams& p, const KvQkv& in, const int64_t* slots) {
  p.dtype = in.dtype, p.qkv = in.qkv.const_data_ptr(), p.slots = slots;
  p.heads = in.heads, p.kv_heads = in.kv_heads, p.d = in.d, p.rotary = in.rotary;
  p.cos = values<float>(in.cos), p.sin = values<float>(in.sin);
  p.q_norm = floats(in.q_norm), p.k_norm = floats(in.k_norm), p.eps = in.eps;
}

template <class Params>
void rope_rows(const Params& p, int64_t tokens,
               void (*cpu::Kernels::*rows)(const Params&, int64_t, int64_t)) {
  parallel(tokens * (p.heads + 2 * p.kv_heads), 1 + kRowWork / p.d,
           [&](int64_t, int64_t begin, int64_t end) { (cpu::active().*rows)(p, begin, end); });
}

template <class Params>
void set_attention(Params& p, DType dtype, int64_t batch, int64_t heads, const KvTables& tables,
                   double softmax_scale) {
  p.dtype = dtype, p.batch = batch, p.heads = heads, p.softmax_scale = float(softmax_scale);
  p.block_table = values<int32_t>(tables.block_table), p.max_pages = tables.max_pages;
}

// The kernels of an attention.
template <class Params>
struct Attention {
  int64_t (*cpu::Kernels::*partial_floats)(const Params&);
  void (*cpu::Kernels::*attend_items)(const Params&, int64_t, int64_t);
  void (*cpu::Kernels::*merge_rows)(const Params&, int64_t, int64_t);
};

constexpr Attention<cpu::KvFloatAttentionParams> kFloatAttention{
    &cpu::Kernels::kv_partial_floats, &cpu::Kernels::kv_attend_items, &cpu::Kernels::kv_merge_rows};

// p: all but the plan and the workspace; op: who says what is not finite in LOWBIT_CHECKED, or null
template <class Params>
void attend(Params& p, const Plan& plan, const char* op, const Attention<Params>& with) {
  p.tokens = plan.tokens.data(), p.first_split = plan.first_split.data();
  const cpu::Kernels& kernels = cpu::active();
  const int64_t splits = plan.first_split.back(), stride = (kernels.*with.partial_floats)(p);
  Workspace work(splits * p.heads * stride * 4);
  p.partial = work.as<float>();
  const int64_t length = plan.longest < cpu::kKvSplit ? plan.longest : cpu::kKvSplit;
  const int64_t item_work = 1 + 2 * length * p.heads / p.cache.kv_heads * p.cache.d;
  parallel(splits * p.cache.kv_heads, 1 + kItemWork / item_work,
           [&](int64_t, int64_t begin, int64_t end) { (kernels.*with.attend_items)(p, begin, end); });
  const int64_t merge_work = 1 + p.cache.d * ceil_div(plan.longest, cpu::kKvSplit);
  parallel(p.batch * p.heads, 1 + kRowWork / merge_work,
           [&](int64_t, int64_t begin, int64_t end) { (kernels.*with.merge_rows)(p, begin, end); });
  if (!op || !checked_mode()) return;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t i = plan.first_split[size_t(b)] * p.heads; i < plan.first_split[size_t(b + 1)] * p.heads;
         ++i) {
      const float* partial = p.partial + i * stride;
      float sum = partial[1];  // NaN as soon as one of them is no number
      for (int64_t j = cpu::kKvPartialHead; j < stride; ++j) sum += 0 * partial[j];
      check(sum == sum, op, ": q or the cache has NaN or infinity in sequence ", b,
            ", expected finite values (LOWBIT_CHECKED)");
    }
}

}  // namespace lowbit::ops
