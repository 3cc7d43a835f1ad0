#include "fused_rows.h"

#include "../numeric/int4.h"

namespace lowbit::ops {

void check_index(const char* op, const RowCodes& codes) {
  if (!codes.index) return;
  const int32_t* index = static_cast<const int32_t*>(codes.index->const_data_ptr());
  int32_t low = 0, high = 0;
  for (int64_t j = 0; j < codes.k; ++j) {
    low = index[j] < low ? index[j] : low;
    high = index[j] > high ? index[j] : high;
  }
  check(low >= 0 && (high < codes.n || !codes.k), op, ": index has values ", low, " to ", high,
        ", expected 0 to ", codes.n - 1);
}

namespace {

struct Codes {
  Tensor q, scale;
};

// Rows of k nibbles + 8 in `bytes` bytes each, one per byte. The CPU's products take nibbles as well as
// bytes; this is for those who want what a card wants.
void spread(const uint8_t* from, int64_t bytes, int64_t rows, int64_t k, int8_t* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < k; ++j) {
      const uint8_t pair = from[r * bytes + j / 2];
      to[r * k + j] = int8_t(j % 2 ? int4::decode_high(pair) : int4::decode_low(pair));
    }
}

// p holds what makes the values of the rows.
Codes run(const char* op, const char* arg, cpu::FusedRowsParams& p, int64_t rows, const RowCodes& codes,
          const std::optional<Transform>& t, decltype(cpu::Kernels::static_rows) cpu::Kernels::* kernel) {
  check_index(op, codes);
  Codes out{empty(codes.q, codes.q_dtype), empty(codes.scale, ScalarType::Float)};
  if (t) p.order = t->order, p.two = t->two, p.mix = t->mix;
  p.n = codes.n;
  cpu::RowCodesParams& c = p.codes;
  c.floats = codes.floats, c.k = codes.k, c.inverse_step = floats(codes.inverse_step),
  c.shift = floats(codes.shift);
  if (codes.index) c.index = static_cast<const int32_t*>(codes.index->const_data_ptr());
  c.bits = codes.bits, c.static_scale = codes.static_scale, c.clip = codes.clip;
  const int64_t packed = codes.bits == 4 && codes.bytes ? (codes.k + 1) / 2 : 0;  // bytes of a row
  Workspace nibbles(rows * packed);
  c.q = packed ? nibbles.as<uint8_t>() : out.q.mutable_data_ptr();
  Workspace finite(codes.static_scale && checked_mode() ? rows * 4 : 0);
  if (!codes.static_scale) c.scale = static_cast<float*>(out.scale.mutable_data_ptr());
  else if (checked_mode() && !codes.floats) c.scale = finite.as<float>();

  const cpu::Kernels& kernels = cpu::active();
  const int64_t scratch = (kernels.fused_rows_scratch(p) + 15) / 16 * 16, grain = 1 + 16384 / (codes.n + 1);
  Workspace work(scratch * 4 * (rows > grain ? threads() : 1));
  parallel(rows, grain, [&](int64_t thread, int64_t begin, int64_t end) {
    (kernels.*kernel)(p, work.as<float>() + thread * scratch, begin, end);
  });
  if (packed)
    spread(nibbles.as<uint8_t>(), packed, rows, codes.k, static_cast<int8_t*>(out.q.mutable_data_ptr()));
  if (c.scale) check_finite(c.scale, rows, op, arg);
  return out;
}

Tensor quantize_static(const Tensor& x, int64_t bits, const OptTensor& inverse_step, const OptTensor& shift,
                       const OptTensor& index, std::optional<int64_t> hadamard_block, bool unpacked) {
  constexpr const char* op = "quantize_static";
  const StaticInput in(op, x, {bits, index, inverse_step, shift, true, 1, unpacked}, hadamard_block);
  cpu::FusedRowsParams p{};
  p.x = in.x.const_data_ptr(), p.dtype = in.dtype;
  return run(op, "x", p, in.rows.count, in.codes, in.transform, &cpu::Kernels::static_rows).q;
}

// q, scale and sum of rms_norm_quantize; y, nothing and sum of rms_norm.
std::tuple<Tensor, Tensor, Tensor> normalise(const char* op, const Tensor& x, const Tensor& weight,
                                             double eps, const OptTensor& residual, double gain_offset,
                                             const Coding& how) {
  const NormInput in(op, x, weight, eps, residual, gain_offset, how);
  Tensor sum = empty(in.sum, in.x.scalar_type());
  cpu::FusedRowsParams p{};
  p.x = in.x.const_data_ptr(), p.dtype = in.dtype;
  p.weight = static_cast<const float*>(in.weight.const_data_ptr());
  p.eps = in.eps, p.gain_offset = in.gain_offset;
  if (in.residual) p.residual = in.residual->const_data_ptr(), p.sum = sum.mutable_data_ptr();
  const Codes out = run(op, "x", p, in.rows.count, in.codes, std::nullopt, &cpu::Kernels::norm_rows);
  return {out.q, out.scale, sum};
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps,
                                    const OptTensor& residual, double gain_offset) {
  const auto [y, scale, sum] = normalise("rms_norm", x, weight, eps, residual, gain_offset, floats_of(x));
  return {y, sum};
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_quantize(const Tensor& x, const Tensor& weight, double eps,
                                                     int64_t bits, const OptTensor& residual,
                                                     const OptTensor& index, const OptTensor& shift,
                                                     bool static_scale, double clip, double gain_offset,
                                                     bool unpacked) {
  return normalise("rms_norm_quantize", x, weight, eps, residual, gain_offset,
                   {bits, index, std::nullopt, shift, static_scale, clip, unpacked});
}

Codes gate(const char* op, const Tensor& gate_up, std::string_view activation,
           std::optional<int64_t> hadamard_block, const Coding& how) {
  const GatedInput in(op, gate_up, activation, hadamard_block, how);
  cpu::FusedRowsParams p{};
  p.x = in.gate_up.const_data_ptr(), p.dtype = in.dtype, p.gelu = in.gelu;
  return run(op, "gate_up", p, in.rows.count, in.codes, in.transform, &cpu::Kernels::gated_rows);
}

Tensor gated(const Tensor& gate_up, std::string_view activation, std::optional<int64_t> hadamard_block) {
  return gate("gated", gate_up, activation, hadamard_block, floats_of(gate_up)).q;
}

std::tuple<Tensor, Tensor> gated_quantize(const Tensor& gate_up, int64_t bits, std::string_view activation,
                                          std::optional<int64_t> hadamard_block,
                                          const OptTensor& inverse_step, const OptTensor& shift,
                                          const OptTensor& index, bool static_scale, double clip,
                                          bool unpacked) {
  const Codes out = gate("gated_quantize", gate_up, activation, hadamard_block,
                         {bits, index, inverse_step, shift, static_scale, clip, unpacked});
  return {out.q, out.scale};
}

}  // namespace

std::tuple<Tensor, Tensor> code_rows(const char* op, const char* arg, const Tensor& x, DType dtype,
                                     const RowCodes& codes) {
  cpu::FusedRowsParams p{};
  p.x = x.const_data_ptr(), p.dtype = dtype;
  const Codes out =
      run(op, arg, p, rows_of(x, op, arg).count, codes, std::nullopt, &cpu::Kernels::static_rows);
  return {out.q, out.scale};
}

}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  using namespace lowbit::ops;
  m.impl("quantize_static", TORCH_BOX(&quantize_static));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_quantize", TORCH_BOX(&rms_norm_quantize));
  m.impl("gated", TORCH_BOX(&gated));
  m.impl("gated_quantize", TORCH_BOX(&gated_quantize));
}
