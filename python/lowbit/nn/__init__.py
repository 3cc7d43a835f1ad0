"""Drop-in linear layers over the packed kernels; subclasses of `nn.Linear`, as PEFT wants."""

from .float_linear import Fp4Linear, WeightOnlyLinear
from .linear import Int4Linear, Int8Linear, IntegerLinear, QuantizedLinear
from .static_linear import StaticInt4Linear

__all__ = [
    "Fp4Linear", "Int4Linear", "Int8Linear", "IntegerLinear", "QuantizedLinear", "StaticInt4Linear",
    "WeightOnlyLinear",
]  # fmt: skip
