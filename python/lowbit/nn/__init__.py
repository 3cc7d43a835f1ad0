"""Drop-in linear layers over the packed integer kernels; subclasses of `nn.Linear`, as PEFT wants."""

from .linear import Int4Linear, Int8Linear, QuantizedLinear

__all__ = ["Int4Linear", "Int8Linear", "QuantizedLinear"]
