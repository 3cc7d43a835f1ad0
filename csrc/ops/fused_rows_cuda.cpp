// Fused row ops on CUDA. LOWBIT_CHECKED and the values of an index are the CPU's to look at: reading a result
// back would stall the stream.
#include "../kernels/fused_rows/params.h"
#include "row_codes_cuda.h"
#include "transform_cuda.h"

namespace lowbit::ops {
namespace {

namespace fused = kernels::fused_rows;
namespace quant = kernels::quantize;

fused::Params params_of(fused::Kind kind, const Tensor& x, DType dtype, int64_t rows, const RowCodes& codes,
                        const CodesOnCard& out) {
  fused::Params p{};
  p.kind = kind, p.x = x.const_data_ptr(), p.dtype = dtype, p.rows = rows, p.k = codes.n, p.k_out = codes.k;
  p.adjust = out.adjust, p.to = out.to;
  return p;
}

void run(const char* op, const fused::Params& p, const OnDevice& on) {
  if (p.rows) check_cuda(fused::fused_rows_launch(p, on.device, on.stream), op);
}

// Rows of x, or gates and ups, transformed, adjusted and quantised (or stored) in one launch.
void run_transformed(const char* op, const Tensor& x, DType dtype, int64_t rows, const RowCodes& codes,
                     const Transform& t, const CodesOnCard& out, const OnDevice& on,
                     std::optional<kernels::Activation> gate = std::nullopt) {
  if (!rows) return;
  kernels::hadamard::Params p{};
  p.x = x.const_data_ptr(), p.dtype = dtype, p.rows = rows, p.n = codes.n, p.n_out = codes.k;
  if (gate) p.gated = true, p.activation = *gate;
  p.scale = float(1.0 / __builtin_sqrt(double(t.order * t.two)));
  p.quantised = true, p.adjust = out.adjust, p.to = out.to;
  run_hadamard(op, p, t, false, on);
}

Tensor quantize_static(const Tensor& x, int64_t bits, const OptTensor& inverse_step, const OptTensor& shift,
                       const OptTensor& index, std::optional<int64_t> hadamard_block, bool unpacked) {
  constexpr const char* op = "quantize_static";
  check_same_device(op, {"x", x}, {{"inverse_step", inverse_step}, {"shift", shift}, {"index", index}});
  const StaticInput in(op, x, {bits, index, inverse_step, shift, true, 1, unpacked}, hadamard_block);
  const OnDevice on(in.x, op);
  const CodesOnCard out(in.codes, on);
  if (in.transform) run_transformed(op, in.x, in.dtype, in.rows.count, in.codes, *in.transform, out, on);
  else run(op, params_of(fused::Kind::kPlain, in.x, in.dtype, in.rows.count, in.codes, out), on);
  return out.q;
}

// q, scale and sum of rms_norm_quantize; y, nothing and sum of rms_norm.
std::tuple<Tensor, Tensor, Tensor> normalise(const char* op, const Tensor& x, const Tensor& weight,
                                             double eps, const OptTensor& residual, double gain_offset,
                                             const Coding& how) {
  check_same_device(op, {"x", x},
                    {{"weight", weight}, {"residual", residual}, {"index", how.index}, {"shift", how.shift}});
  const NormInput in(op, x, weight, eps, residual, gain_offset, how);
  const OnDevice on(in.x, op);
  const CodesOnCard out(in.codes, on);
  Tensor sum = empty_cuda(in.sum, in.x.scalar_type(), on.device.index);
  fused::Params p = params_of(fused::Kind::kNorm, in.x, in.dtype, in.rows.count, in.codes, out);
  p.adjust.factor = static_cast<const float*>(in.weight.const_data_ptr());
  p.eps = in.eps, p.gain_offset = in.gain_offset;
  if (in.residual) p.residual = in.residual->const_data_ptr(), p.sum = sum.mutable_data_ptr();
  run(op, p, on);
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

CodesOnCard gate(const char* op, const Tensor& gate_up, std::string_view activation,
                 std::optional<int64_t> hadamard_block, const Coding& how) {
  check_same_device(op, {"gate_up", gate_up},
                    {{"inverse_step", how.inverse_step}, {"shift", how.shift}, {"index", how.index}});
  const GatedInput in(op, gate_up, activation, hadamard_block, how);
  const OnDevice on(in.gate_up, op);
  CodesOnCard out(in.codes, on);
  const auto activation_of = in.gelu ? kernels::Activation::kGeluTanh : kernels::Activation::kSilu;
  if (in.transform) {
    run_transformed(op, in.gate_up, in.dtype, in.rows.count, in.codes, *in.transform, out, on, activation_of);
  } else {
    fused::Params p = params_of(fused::Kind::kGated, in.gate_up, in.dtype, in.rows.count, in.codes, out);
    p.activation = activation_of;
    run(op, p, on);
  }
  return out;
}

Tensor gated(const Tensor& gate_up, std::string_view activation, std::optional<int64_t> hadamard_block) {
  return gate("gated", gate_up, activation, hadamard_block, floats_of(gate_up)).q;
}

std::tuple<Tensor, Tensor> gated_quantize(const Tensor& gate_up, int64_t bits, std::string_view activation,
                                          std::optional<int64_t> hadamard_block,
                                          const OptTensor& inverse_step, const OptTensor& shift,
                                          const OptTensor& index, bool static_scale, double clip,
                                          bool unpacked) {
  const CodesOnCard out = gate("gated_quantize", gate_up, activation, hadamard_block,
                               {bits, index, inverse_step, shift, static_scale, clip, unpacked});
  return {out.q, out.scale};
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  using namespace lowbit::ops;
  m.impl("quantize_static", TORCH_BOX(&quantize_static));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_quantize", TORCH_BOX(&rms_norm_quantize));
  m.impl("gated", TORCH_BOX(&gated));
  m.impl("gated_quantize", TORCH_BOX(&gated_quantize));
}
