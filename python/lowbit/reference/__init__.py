"""Plain-PyTorch definition of every op: the specification, slow on purpose.

Each function has the signature of the `torch.ops.lowbit` op of the same name and, where DESIGN's numeric
contract promises it, the same bits. Nothing here is used by the fast path; tests compare the two.
"""

from .attention import (
    causal_attention,
    kv4_append,
    kv4_attend,
    kv4_attend_quantize,
    kv4_attention,
    kv4_rope_append,
    kv_attend,
)
from .fp4 import fp4_linear, quantize_fp4
from .fp_gemm import (
    dequantize_fp_weight,
    encode_fp,
    fp_linear,
    prepack_fp_group_scale,
    prepack_fp_weight,
    unprepack_fp_group_scale,
    unprepack_fp_weight,
)
from .fused import gated, gated_quantize, quantize_static, rms_norm, rms_norm_quantize, tree_sum
from .int_gemm import dequantize_weight, dynamic_linear, int4_linear, int8_linear
from .kv_cache import kv4_dequantize, kv4_quantize
from .layout import (
    pack_int4,
    prepack_group_scale,
    prepack_int4_weight,
    prepack_int8_weight,
    unpack_int4,
    unprepack_int4_weight,
    unprepack_int8_weight,
)
from .quantize import quantize_int4, quantize_int8
from .transform import hadamard, hadamard_matrix, hadamard_quantize

__all__ = [
    "causal_attention",
    "dequantize_fp_weight",
    "dequantize_weight",
    "dynamic_linear",
    "encode_fp",
    "fp4_linear",
    "fp_linear",
    "gated",
    "gated_quantize",
    "hadamard",
    "hadamard_matrix",
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
    "tree_sum",
    "unpack_int4",
    "unprepack_fp_group_scale",
    "unprepack_fp_weight",
    "unprepack_int4_weight",
    "unprepack_int8_weight",
]
