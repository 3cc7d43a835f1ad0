// The paged INT4 KV cache on CUDA. One launch each, and nothing that waits for the card: values of slots,
// block tables and lengths are not checked. A slot that the cache does not have is skipped, a length is cut
// to the pages of its row of the table; a page number in use has to be right. LOWBIT_CHECKED is the CPU's.
#include "../kernels/kv_cache/config.h"
#include "kv_paged.h"
#include "row_codes_cuda.h"

namespace lowbit::ops {
namespace {

namespace kv = kernels::kv_cache;

template <class T>
const T* values(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

// A cache is used where it is.
template <class T>
T* in_place(const Tensor& t, const char* op, const char* arg) {
  T* at = static_cast<T*>(const_cast<void*>(t.const_data_ptr()));
  check(reinterpret_cast<uintptr_t>(at) % 16 == 0, op, ": ", arg,
        " starts at an address that is no multiple of 16, expected a cache of its own");
  return at;
}

kv::Pages pages_of(const char* op, const Kv4Pages& c) {
  check(c.d % 8 == 0 && c.d <= kv::kMaxHead, op, ": the head size is ", c.d,
        ", expected a multiple of 8 up to ", kv::kMaxHead, " on CUDA");
  check(c.pages * c.page * c.kv_heads < (int64_t(1) << 31), op, ": the cache has ", c.pages,
        " pages, expected fewer than 2^31 heads of tokens");
  kv::Pages p{};
  p.key_codes = in_place<uint8_t>(c.key_codes, op, "key_codes");
  p.value_codes = in_place<uint8_t>(c.value_codes, op, "value_codes");
  p.key_params = in_place<uint32_t>(c.key_params, op, "key_params");
  p.value_params = in_place<uint32_t>(c.value_params, op, "value_params");
  p.slots = c.pages * c.page, p.page_shift = __builtin_ctzll(uint64_t(c.page));
  p.kv_heads = int32_t(c.kv_heads), p.d = int32_t(c.d);
  return p;
}

int32_t count_of(const char* op, const char* what, int64_t n) {
  check(n < (int64_t(1) << 31), op, ": ", n, " ", what, ", expected fewer than 2^31");
  return int32_t(n);
}

// What qkv's heads go through. `kept` keeps the tables alive until the launch.
kv::Rotation rotation_of(const Kv4Qkv& in, std::vector<Tensor>& kept) {
  const auto keep = [&](const Tensor& t) { return keep_aligned<float>(t, kept); };
  kv::Rotation r{};
  if (in.rotary) r.cos = keep(in.cos), r.sin = keep(in.sin), r.rotary = int32_t(in.rotary);
  if (in.q_norm) r.q_norm = keep(*in.q_norm);
  if (in.k_norm) r.k_norm = keep(*in.k_norm);
  r.eps = in.eps, r.key_block = int32_t(in.key_block), r.key_scale = key_scale_of(in.key_block);
  return r;
}

// Launches p with its workspace; a table without pages, or a batch without sequences, is fine.
void attend(const char* op, kv::AttentionParams& p, const OnDevice& on) {
  for (const int d : {64, 80, 96, 128, 256})
    if (p.pages.d == d) {
      const kv::AttentionChoice c = kv::choose(p, on.device);
      std::vector<Tensor> kept;
      if (c.tickets) {
        kept.push_back(empty_cuda({c.partial_floats}, ScalarType::Float, on.device.index));
        p.partial = static_cast<float*>(kept.back().mutable_data_ptr());
        p.tickets = zeroed_tickets(c.tickets, on.device.index, kept);
      }
      return check_cuda(kv::kv4_attention_launch(p, on.device, on.stream), op);
    }
  check(false, op, ": the head size is ", p.pages.d, ", expected 64, 80, 96, 128 or 256 on CUDA");
}

void check_caches(const char* op, const Named& first, const Kv4Pages& c) {
  check_same_device(op, first,
                    {{"key_codes", c.key_codes},
                     {"key_params", c.key_params},
                     {"value_codes", c.value_codes},
                     {"value_params", c.value_params}});
}

void check_qkv(const char* op, const Kv4Qkv& in) {
  check_same_device(op, {"qkv", in.qkv},
                    {{"cos", in.cos}, {"sin", in.sin}, {"q_norm", in.q_norm}, {"k_norm", in.k_norm}});
  check_caches(op, {"qkv", in.qkv}, in.cache);
}

void kv4_append(Tensor key_in, Tensor value_in, Tensor slots, Tensor key_codes, Tensor key_params,
                Tensor value_codes, Tensor value_params, double clip, std::optional<int64_t> key_block) {
  constexpr const char* op = "kv4_append";
  const Kv4Append in(op, key_in, value_in, slots, key_codes, key_params, value_codes, value_params, clip,
                     key_block);
  check_same_device(op, {"key", in.key}, {{"value", in.value}, {"slots", in.slots}});
  check_caches(op, {"key", in.key}, in.cache);
  const OnDevice on(in.key, op);
  const Tensor key = as_aligned(in.key), value = as_aligned(in.value);
  kv::AppendParams p{};
  p.dtype = in.dtype, p.tokens = count_of(op, "tokens", in.tokens);
  p.key = key.const_data_ptr(), p.value = value.const_data_ptr();
  p.token_stride = in.cache.kv_heads * in.cache.d, p.slots = values<int64_t>(in.slots);
  p.rotation.key_block = int32_t(in.key_block), p.rotation.key_scale = key_scale_of(in.key_block);
  p.clip = in.clip, p.pages = pages_of(op, in.cache);
  check_cuda(kv::kv4_append_launch(p, on.device, on.stream), op);
}

std::tuple<Tensor, Tensor, Tensor> kv4_rope_append(Tensor qkv_in, Tensor cos, Tensor sin, int64_t heads,
                                                   int64_t kv_heads, Tensor slots_in, Tensor key_codes,
                                                   Tensor key_params, Tensor value_codes, Tensor value_params,
                                                   OptTensor q_norm, OptTensor k_norm, double eps,
                                                   double clip, std::optional<int64_t> key_block) {
  constexpr const char* op = "kv4_rope_append";
  const Kv4Qkv in(op, qkv_in, cos, sin, heads, kv_heads, key_codes, key_params, value_codes, value_params,
                  q_norm, k_norm, eps, clip, key_block);
  const Tensor slots = slots_of(op, slots_in, in.tokens);
  check_qkv(op, in);
  check_same_device(op, {"qkv", in.qkv}, {{"slots", slots}});
  const OnDevice on(in.qkv, op);
  const auto out = [&](int64_t n) {
    return empty_cuda({in.tokens, n, in.d}, qkv_in.scalar_type(), on.device.index);
  };
  Tensor q = out(heads), k = out(kv_heads), v = out(kv_heads);
  const Tensor qkv = as_aligned(in.qkv);
  std::vector<Tensor> kept;
  kv::AppendParams p{};
  p.dtype = in.dtype, p.tokens = count_of(op, "tokens", in.tokens), p.heads = int32_t(heads);
  const uint8_t* start = values<uint8_t>(qkv);
  const int64_t head_bytes = in.d * size_of(in.dtype);
  p.q = start, p.key = start + heads * head_bytes, p.value = start + (heads + kv_heads) * head_bytes;
  p.token_stride = (heads + 2 * kv_heads) * in.d, p.slots = values<int64_t>(slots);
  p.q_out = q.mutable_data_ptr(), p.k_out = k.mutable_data_ptr(), p.v_out = v.mutable_data_ptr();
  p.rotation = rotation_of(in, kept), p.clip = in.clip, p.pages = pages_of(op, in.cache);
  check_cuda(kv::kv4_append_launch(p, on.device, on.stream), op);
  return {q, k, v};
}

// `kept` keeps the tensors alive until the launch.
void set_prefix(const char* op, kv::AttentionParams& p, const Kv4Prefix& prefix, const Named& first,
                std::vector<Tensor>& kept) {
  static_assert(kv::kMaxPrefix == cpu::kKvPrefix);
  if (!prefix.tokens) return;
  check_same_device(op, first, {{"prefix_k", prefix.key}, {"prefix_v", prefix.value}});
  const auto keep = [&](const Tensor& t) { return keep_aligned<float>(t, kept); };
  p.prefix = int32_t(prefix.tokens), p.prefix_key = keep(*prefix.key), p.prefix_value = keep(*prefix.value);
}

void set_tables(const char* op, kv::AttentionParams& p, const KvTables& t, const Named& first) {
  check_same_device(op, first, {{"block_table", t.block_table}, {"lengths", t.lengths}});
  p.table = values<int32_t>(t.block_table), p.lengths = values<int32_t>(t.lengths);
  check(t.max_pages <= (int64_t(1) << 30) >> p.pages.page_shift, op, ": block_table has ", t.max_pages,
        " pages for a sequence, expected at most 2^30 tokens");
  p.max_pages = int32_t(t.max_pages);
}

Tensor kv4_attention(Tensor q_in, Tensor key_codes, Tensor key_params, Tensor value_codes,
                     Tensor value_params, Tensor block_table, Tensor lengths, double softmax_scale,
                     OptTensor prefix_k, OptTensor prefix_v) {
  constexpr const char* op = "kv4_attention";
  const Kv4Attention in(op, q_in, key_codes, key_params, value_codes, value_params, block_table, lengths,
                        softmax_scale, prefix_k, prefix_v);
  check_caches(op, {"q", in.q}, in.cache);
  const OnDevice on(in.q, op);
  Tensor y = empty_cuda(shape_of(in.q), q_in.scalar_type(), on.device.index);
  if (!in.heads) return y;
  const Tensor q = as_aligned(in.q);
  kv::AttentionParams p{};
  p.dtype = in.dtype, p.batch = count_of(op, "sequences", in.batch);
  p.heads = count_of(op, "heads", in.heads), p.q = q.const_data_ptr(), p.y = y.mutable_data_ptr();
  p.softmax_scale = in.softmax_scale, p.pages = pages_of(op, in.cache);
  set_tables(op, p, in.tables, {"q", in.q});
  std::vector<Tensor> kept;
  set_prefix(op, p, in.prefix, {"q", in.q}, kept);
  attend(op, p, on);
  return y;
}

// What kv4_attend and kv4_attend_quantize do alike. out: codes of the rows, from the same launch; or null.
Tensor attend_step(const char* op, const Kv4Qkv& in, const KvTables& tables, const Kv4Prefix& prefix,
                   double softmax_scale, const OnDevice& on, const RowCodes* codes, const CodesOnCard* out) {
  const int64_t columns = in.heads * in.d;
  Tensor y = empty_cuda({in.tokens, columns}, in.qkv.scalar_type(), on.device.index);
  const Tensor qkv = as_aligned(in.qkv);
  std::vector<Tensor> kept;
  kv::AttentionParams p{};
  p.dtype = in.dtype, p.batch = count_of(op, "sequences", in.tokens);
  p.heads = count_of(op, "heads", in.heads), p.q = qkv.const_data_ptr(), p.y = y.mutable_data_ptr();
  p.softmax_scale = float(softmax_scale), p.append = true, p.clip = in.clip;
  p.rotation = rotation_of(in, kept), p.pages = pages_of(op, in.cache);
  set_tables(op, p, tables, {"qkv", in.qkv});
  set_prefix(op, p, prefix, {"qkv", in.qkv}, kept);
  if (out) {
    check(codes->k > 0 && codes->k < (int64_t(1) << 30) && columns < (int64_t(1) << 30), op, ": ", columns,
          " values and ", codes->k, " codes in a row, expected 1 to 2^30 on CUDA");
    p.adjust = out->adjust, p.codes = out->to, p.columns = int32_t(codes->k);
  }
  attend(op, p, on);
  return y;
}

Tensor kv4_attend(Tensor qkv_in, Tensor cos, Tensor sin, int64_t heads, int64_t kv_heads, Tensor key_codes,
                  Tensor key_params, Tensor value_codes, Tensor value_params, Tensor block_table,
                  Tensor lengths, double softmax_scale, OptTensor q_norm, OptTensor k_norm, double eps,
                  double clip, std::optional<int64_t> key_block, OptTensor prefix_k, OptTensor prefix_v) {
  constexpr const char* op = "kv4_attend";
  const Kv4Qkv in(op, qkv_in, cos, sin, heads, kv_heads, key_codes, key_params, value_codes, value_params,
                  q_norm, k_norm, eps, clip, key_block);
  const KvTables tables(op, in.tokens, block_table, lengths);
  const Kv4Prefix prefix(op, prefix_k, prefix_v, in.cache);
  check_qkv(op, in);
  const OnDevice on(in.qkv, op);
  return attend_step(op, in, tables, prefix, softmax_scale, on, nullptr, nullptr);
}

std::tuple<Tensor, Tensor> kv4_attend_quantize(
    Tensor qkv_in, Tensor cos, Tensor sin, int64_t heads, int64_t kv_heads, Tensor key_codes,
    Tensor key_params, Tensor value_codes, Tensor value_params, Tensor block_table, Tensor lengths,
    double softmax_scale, int64_t bits, OptTensor q_norm, OptTensor k_norm, double eps, double clip,
    std::optional<int64_t> key_block, OptTensor prefix_k, OptTensor prefix_v, OptTensor inverse_step,
    OptTensor shift, OptTensor index, bool static_scale, double code_clip, bool unpacked) {
  constexpr const char* op = "kv4_attend_quantize";
  const Kv4Qkv in(op, qkv_in, cos, sin, heads, kv_heads, key_codes, key_params, value_codes, value_params,
                  q_norm, k_norm, eps, clip, key_block);
  const KvTables tables(op, in.tokens, block_table, lengths);
  const Kv4Prefix prefix(op, prefix_k, prefix_v, in.cache);
  check_qkv(op, in);
  check_same_device(op, {"qkv", in.qkv},
                    {{"inverse_step", inverse_step}, {"shift", shift}, {"index", index}});
  const RowCodes codes(op, {in.tokens, heads * in.d}, heads * in.d,
                       {bits, index, inverse_step, shift, static_scale, code_clip, unpacked});
  const OnDevice on(in.qkv, op);
  const CodesOnCard out(codes, on);
  attend_step(op, in, tables, prefix, softmax_scale, on, &codes, &out);
  return {out.q, out.scale};
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  m.impl("kv4_append", TORCH_BOX(&lowbit::ops::kv4_append));
  m.impl("kv4_rope_append", TORCH_BOX(&lowbit::ops::kv4_rope_append));
  m.impl("kv4_attention", TORCH_BOX(&lowbit::ops::kv4_attention));
  m.impl("kv4_attend", TORCH_BOX(&lowbit::ops::kv4_attend));
  m.impl("kv4_attend_quantize", TORCH_BOX(&lowbit::ops::kv4_attend_quantize));
}
