// Every schema of the library, in one place.
#include "common.h"

STABLE_TORCH_LIBRARY(lowbit, m) {
  m.def("pack_int4(Tensor q) -> Tensor");
  m.def("unpack_int4(Tensor packed, int? k=None) -> Tensor");
  m.def("prepack_int4_weight(Tensor weight_packed) -> Tensor");
  m.def("prepack_int8_weight(Tensor weight) -> Tensor");
  m.def("prepack_group_scale(Tensor group_scale) -> Tensor");
  m.def("quantize_int4(Tensor x, float clip=1.0) -> (Tensor, Tensor)");
  m.def("quantize_int8(Tensor x, float clip=1.0) -> (Tensor, Tensor)");
  m.def("hadamard(Tensor x, float scale=1.0, int? block=None, bool transpose=False) -> Tensor");
  m.def("hadamard_(Tensor(a!) x, float scale=1.0, int? block=None, bool transpose=False) -> ()");
  m.def("hadamard_quantize(Tensor x, int bits, float clip=1.0, int? block=None) -> (Tensor, Tensor)");
  m.def(
      "int4_linear(Tensor x_q, Tensor? x_scale, Tensor weight, Tensor w_scale, Tensor? group_scale=None, "
      "Tensor? bias=None, ScalarType? out_dtype=None, Tensor? residual=None, Tensor? low_rank=None, "
      "Tensor? low_rank_up=None) -> Tensor");
  m.def(
      "int8_linear(Tensor x_q, Tensor? x_scale, Tensor weight, Tensor w_scale, Tensor? bias=None, "
      "ScalarType? out_dtype=None, Tensor? residual=None, Tensor? low_rank=None, Tensor? low_rank_up=None) "
      "-> "
      "Tensor");
  m.def(
      "dynamic_linear(Tensor x, Tensor weight, Tensor w_scale, Tensor? group_scale=None, Tensor? bias=None, "
      "int activation_bits=8, float clip=1.0, int? hadamard_block=None, Tensor? shift=None, "
      "Tensor? residual=None) -> Tensor");
  m.def(
      "quantize_static(Tensor x, int bits, Tensor? inverse_step=None, Tensor? shift=None, "
      "Tensor? index=None, int? hadamard_block=None, bool unpacked=False) -> Tensor");
  m.def(
      "rms_norm(Tensor x, Tensor weight, float eps, Tensor? residual=None, float gain_offset=0.0) -> "
      "(Tensor y, Tensor sum)");
  m.def(
      "rms_norm_quantize(Tensor x, Tensor weight, float eps, int bits, Tensor? residual=None, "
      "Tensor? index=None, Tensor? shift=None, bool static_scale=False, float clip=1.0, "
      "float gain_offset=0.0, bool unpacked=False) -> (Tensor q, Tensor scale, Tensor sum)");
  m.def("gated(Tensor gate_up, str activation=\"silu\", int? hadamard_block=None) -> Tensor");
  m.def(
      "gated_quantize(Tensor gate_up, int bits, str activation=\"silu\", int? hadamard_block=None, "
      "Tensor? inverse_step=None, Tensor? shift=None, Tensor? index=None, bool static_scale=False, "
      "float clip=1.0, bool unpacked=False) -> (Tensor q, Tensor scale)");
  m.def("encode_fp(Tensor x, str format, bool ties_away=False) -> Tensor");
  m.def("prepack_fp_weight(Tensor weight_packed, str format, int k) -> Tensor");
  m.def("prepack_fp_group_scale(Tensor group_scale) -> Tensor");
  m.def(
      "fp_linear(Tensor x, Tensor weight, str format, Tensor w_scale, Tensor? group_scale=None, "
      "Tensor? bias=None, Tensor? residual=None) -> Tensor");
  m.def(
      "quantize_fp4(Tensor x, str format, Tensor? scale=None, Tensor? exponent=None, float clip=1.0) -> "
      "(Tensor, Tensor)");
  m.def(
      "fp4_linear(Tensor x_q, str x_format, Tensor? x_scale, Tensor weight, str w_format, Tensor w_scale, "
      "Tensor? bias=None, ScalarType? out_dtype=None) -> Tensor");
  m.def("kv4_quantize(Tensor x, float clip=1.0) -> (Tensor, Tensor)");
  m.def("kv4_dequantize(Tensor packed, Tensor params, ScalarType? dtype=None, int? d=None) -> Tensor");
  m.def(
      "kv4_append(Tensor key, Tensor value, Tensor slots, Tensor(a!) key_codes, Tensor(b!) key_params, "
      "Tensor(c!) value_codes, Tensor(d!) value_params, float clip=1.0, int? key_block=None) -> ()");
  m.def(
      "kv4_rope_append(Tensor qkv, Tensor cos, Tensor sin, int heads, int kv_heads, Tensor slots, "
      "Tensor(a!) key_codes, Tensor(b!) key_params, Tensor(c!) value_codes, Tensor(d!) value_params, "
      "Tensor? q_norm=None, Tensor? k_norm=None, float eps=1e-6, float clip=1.0, int? key_block=None) -> "
      "(Tensor q, Tensor k, Tensor v)");
  m.def(
      "kv4_attention(Tensor q, Tensor key_codes, Tensor key_params, Tensor value_codes, Tensor value_params, "
      "Tensor block_table, Tensor lengths, float softmax_scale, Tensor? prefix_k=None, "
      "Tensor? prefix_v=None) -> Tensor");
  m.def(
      "kv_attend(Tensor qkv, Tensor cos, Tensor sin, int heads, int kv_heads, Tensor(a!) key_cache, "
      "Tensor(b!) value_cache, Tensor block_table, Tensor lengths, float softmax_scale, "
      "Tensor? q_norm=None, Tensor? k_norm=None, float eps=1e-6) -> Tensor");
  m.def("causal_attention(Tensor q, Tensor k, Tensor v, float softmax_scale) -> Tensor");
  m.def(
      "kv4_attend(Tensor qkv, Tensor cos, Tensor sin, int heads, int kv_heads, Tensor(a!) key_codes, "
      "Tensor(b!) key_params, Tensor(c!) value_codes, Tensor(d!) value_params, Tensor block_table, "
      "Tensor lengths, float softmax_scale, Tensor? q_norm=None, Tensor? k_norm=None, float eps=1e-6, "
      "float clip=1.0, int? key_block=None, Tensor? prefix_k=None, Tensor? prefix_v=None) -> Tensor");
  m.def(
      "kv4_attend_quantize(Tensor qkv, Tensor cos, Tensor sin, int heads, int kv_heads, "
      "Tensor(a!) key_codes, Tensor(b!) key_params, Tensor(c!) value_codes, Tensor(d!) value_params, "
      "Tensor block_table, Tensor lengths, float softmax_scale, int bits, Tensor? q_norm=None, "
      "Tensor? k_norm=None, float eps=1e-6, float clip=1.0, int? key_block=None, Tensor? prefix_k=None, "
      "Tensor? prefix_v=None, Tensor? inverse_step=None, Tensor? shift=None, Tensor? index=None, "
      "bool static_scale=False, float code_clip=1.0, bool unpacked=False) -> (Tensor q, Tensor scale)");
}
