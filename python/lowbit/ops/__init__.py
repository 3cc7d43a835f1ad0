"""The ops under `torch.ops.lowbit`, by name. Shapes, dtypes, errors and sources: docs/ops.md."""

import torch

from .. import _ext
from .._ext import isa, isas, set_isa
from . import autograd, cuda, fake

autograd.register()
if _ext.cuda_archs():
    cuda.register()

NAMES = (
    "causal_attention",
    "dynamic_linear",
    "encode_fp",
    "fp4_linear",
    "fp_linear",
    "gated",
    "gated_quantize",
    "hadamard",
    "hadamard_",
    "hadamard_quantize",
    "int4_linear",
    "int8_linear",
    "kv4_append",
    "kv4_attend",
    "kv4_attend_quantize",
    "kv4_attention",
    "kv4_dequantize",
    "kv4_quantize",
    "kv4_rope_append",
    "kv_attend",
    "pack_int4",
    "prepack_fp_group_scale",
    "prepack_fp_weight",
    "prepack_group_scale",
    "prepack_int4_weight",
    "prepack_int8_weight",
    "quantize_fp4",
    "quantize_int4",
    "quantize_int8",
    "quantize_static",
    "rms_norm",
    "rms_norm_quantize",
    "unpack_int4",
)

causal_attention = torch.ops.lowbit.causal_attention
dynamic_linear = torch.ops.lowbit.dynamic_linear
encode_fp = torch.ops.lowbit.encode_fp
fp4_linear = torch.ops.lowbit.fp4_linear
fp_linear = torch.ops.lowbit.fp_linear
gated = torch.ops.lowbit.gated
gated_quantize = torch.ops.lowbit.gated_quantize
hadamard = torch.ops.lowbit.hadamard
hadamard_ = torch.ops.lowbit.hadamard_
hadamard_quantize = torch.ops.lowbit.hadamard_quantize
int4_linear = torch.ops.lowbit.int4_linear
int8_linear = torch.ops.lowbit.int8_linear
kv4_append = torch.ops.lowbit.kv4_append
kv4_attend = torch.ops.lowbit.kv4_attend
kv4_attend_quantize = torch.ops.lowbit.kv4_attend_quantize
kv4_attention = torch.ops.lowbit.kv4_attention
kv4_dequantize = torch.ops.lowbit.kv4_dequantize
kv4_quantize = torch.ops.lowbit.kv4_quantize
kv4_rope_append = torch.ops.lowbit.kv4_rope_append
kv_attend = torch.ops.lowbit.kv_attend
pack_int4 = torch.ops.lowbit.pack_int4
prepack_fp_group_scale = torch.ops.lowbit.prepack_fp_group_scale
prepack_fp_weight = torch.ops.lowbit.prepack_fp_weight
prepack_group_scale = torch.ops.lowbit.prepack_group_scale
prepack_int4_weight = torch.ops.lowbit.prepack_int4_weight
prepack_int8_weight = torch.ops.lowbit.prepack_int8_weight
quantize_fp4 = torch.ops.lowbit.quantize_fp4
quantize_int4 = torch.ops.lowbit.quantize_int4
quantize_int8 = torch.ops.lowbit.quantize_int8
quantize_static = torch.ops.lowbit.quantize_static
rms_norm = torch.ops.lowbit.rms_norm
rms_norm_quantize = torch.ops.lowbit.rms_norm_quantize
unpack_int4 = torch.ops.lowbit.unpack_int4

__all__ = [*NAMES, "NAMES", "_ext", "fake", "isa", "isas", "set_isa"]
