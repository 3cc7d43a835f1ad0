"""The `quantization_config` block of a lowbit checkpoint, and its registration with transformers."""

from importlib.metadata import PackageNotFoundError, version

from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from ... import formats
from ...nn import Fp4Linear, Int4Linear, Int8Linear, QuantizedLinear, StaticInt4Linear, WeightOnlyLinear
from ...recipes import Recipe

QUANT_METHOD = "lowbit"
LAYER_TYPES = {
    "int4": Int4Linear, "int8": Int8Linear, "weight_only": WeightOnlyLinear, "fp4": Fp4Linear,
    "static_int4": StaticInt4Linear,
}  # fmt: skip
_OPTION_TYPES = {  # of the layers' options
    "in_features": int, "out_features": int, "bias": bool, "activation_bits": int,
    "group_size": (int, type(None)), "clip": (int, float), "input_hadamard": (int, type(None)),
    "mean_shift": bool, "weight_format": str, "activation_format": str, "scale_format": (str, type(None)),
    "static_scale": bool, "pre_shift": bool, "gathered": (int, type(None)), "input_step": bool, "rank": int,
}  # fmt: skip


class LowbitConfig(QuantizationConfigMixin):
    """recipe: fields of `lowbit.Recipe`; modules: name -> how that layer is stored (see `describe_layer`).

    `lowbit_version` tells which release wrote the checkpoint, `format_version` its byte layout.
    """

    def __init__(
        self, recipe: dict | None = None, modules: dict | None = None,
        format_version: int = formats.FORMAT_VERSION, lowbit_version: str | None = None, **kwargs,
    ):  # kwargs: transformers passes quant_method, and later releases may pass more
        self.quant_method = QUANT_METHOD
        self.recipe = recipe if recipe is not None else {}
        self.modules = modules if modules is not None else {}
        self.format_version = format_version
        self.lowbit_version = lowbit_version or _version()

    def check(self) -> None:
        """ValueError with one sentence if the block was not written by a release this one understands."""
        if self.format_version != formats.FORMAT_VERSION:
            raise ValueError(
                f"quantization_config.format_version: expected {formats.FORMAT_VERSION}, "
                f"got {self.format_version} (written by lowbit {self.lowbit_version})"
            )
        Recipe.from_dict(self.recipe)
        if not isinstance(self.modules, dict) or not self.modules:
            raise ValueError("quantization_config.modules: expected the quantised layers by name, got none")
        for name, spec in self.modules.items():
            _check_spec(f"quantization_config.modules[{name!r}]", spec)


def describe_layer(layer: QuantizedLinear) -> dict:
    """Everything needed to build the layer again, except its tensors."""
    kind = next(name for name, kind in LAYER_TYPES.items() if isinstance(layer, kind))
    return {"type": kind, **layer.options()}


def build_layer(spec: dict, dtype=None, device: str = "meta") -> QuantizedLinear:
    """The empty layer that a checked spec describes."""
    arguments = {key: value for key, value in spec.items() if key != "type"}
    return LAYER_TYPES[spec["type"]](**arguments, device=device, dtype=dtype)


def _check_spec(where: str, spec: object) -> None:
    kind = spec.get("type") if isinstance(spec, dict) else None
    if kind is not None and kind not in tuple(LAYER_TYPES):
        raise ValueError(f"{where}.type: expected one of {', '.join(LAYER_TYPES)}, got {kind!r}")
    options = QuantizedLinear.OPTIONS if kind is None else LAYER_TYPES[kind].OPTIONS
    if kind is None or set(spec) != {"type", *options}:
        got = ", ".join(sorted(spec)) if isinstance(spec, dict) else repr(spec)
        raise ValueError(f"{where}: expected the fields type, {', '.join(options)}, got {got}")
    for key in options:
        want = _OPTION_TYPES[key]
        if not isinstance(spec[key], want) or (want is int and isinstance(spec[key], bool)):
            raise ValueError(f"{where}.{key}: expected {want}, got {spec[key]!r}")


def skeleton_check(name: str, module: nn.Module, spec: dict) -> None:
    """The model's own linear at `name` must have the sizes of the spec."""
    if not isinstance(module, nn.Linear):
        got = type(module).__name__
        raise ValueError(f"quantization_config: expected a linear layer at {name}, got {got}")
    got, want = [module.out_features, module.in_features], [spec["out_features"], spec["in_features"]]
    if got != want:
        raise ValueError(f"quantization_config: expected {name} of size {got} as in config.json, got {want}")


def _version() -> str:
    try:
        return version("lowbit")
    except PackageNotFoundError:
        return "0.0.0+source"


if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config(QUANT_METHOD)(LowbitConfig)
