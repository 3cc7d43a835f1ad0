"""The recipes by name, and their fields."""

import dataclasses
import difflib
import json
from dataclasses import dataclass, replace

from ..formats import FP4_FORMATS, FP6_FORMATS, GROUP_SIZES, bits_of, check_scale_format

FAMILIES = {"fp6": FP6_FORMATS, "fp4": FP4_FORMATS}  # weight formats of which each layer takes the best
LLM_FP4 = ("llm-fp4", "llm-fp4-gptq")  # the search with rounded weights, and with GPTQ's
BASELINES = ["fp32", "bf16"]  # names of method tables that mean "not quantised"


@dataclass(frozen=True)
class Recipe:
    """How a model is quantised. Every field is stored in the checkpoint's config."""

    name: str = "custom"
    weight_bits: int = 4  # 4, 6 or 8
    activation_bits: int = 4  # 4 or 8, symmetric per token; 16 = not quantised
    kv_bits: int = 16  # 4 or 16, asymmetric per token and head
    head_bits: int = 16  # 8 = lm_head in int8, per output channel, and its input per token; 16 = as it is
    group_size: int | None = None  # None = one scale per output channel; 32, 64, 128 = also one per group
    rotate: bool = False  # QuaRot's R1, R2, R4, and R3 in a 4-bit cache
    weight_method: str = "rtn"  # "rtn", "rtn-weighted", "gptq", "llm-fp4" or "llm-fp4-gptq"
    activation_clip: float | None = 1.0  # share of a token's absmax; None = searched per layer
    kv_clip: float = 0.95
    mean_shift: bool = False  # subtract a calibrated mean from the inputs, its product with W is a bias
    damp: float = 0.01  # GPTQ: share of the mean diagonal
    quantized_calibration: bool = False  # GPTQ sees activations as quantised at run time (measured: no gain)
    seed: int = 0  # of the random signs
    weight_format: str | None = None  # a float format, or "fp6", "fp4" = the best per layer; None = integers
    activation_format: str | None = None  # a 4-bit float format, or "fp4" (LLM-FP4 alone); None = integers
    static_activations: bool = False  # LLM-FP4: one scale per layer instead of one per token
    pre_shift: bool = False  # LLM-FP4: powers of two per input channel, folded into the weights
    rotate_residual: bool = True  # with `rotate`: R1; without it R2, R3 and R4 alone
    static_channels: bool = False  # MergeQuant: static steps per input channel, folded into norms and weights
    static_sites: str = "best"  # of it: "norm" = linears behind norms, "all", or "best" = also where it helps
    split: float | None = None  # of it: channels beyond this many medians are split into copies
    split_growth: float = 0.12  # of it: by how much the copies may widen a layer
    dither: bool = True  # of it: copies round at different places
    prune: bool = False  # of it: as many channels are dropped as copies are added
    migrate_values: bool = False  # of it: o_proj's steps go into v_proj's output channels
    prefix: bool = False  # one exact token, its keys and values stored, comes before every sequence
    rank: int = 0  # of it: of the compensation of the weights' rounding
    scale_format: str | None = None  # of groups under unquantised activations: "fp16", "e8m0" or "mx"

    def __post_init__(self):
        _expect("weight_bits", self.weight_bits, (4, 6, 8))
        _expect("activation_bits", self.activation_bits, (4, 8, 16))
        _expect("kv_bits", self.kv_bits, (4, 16))
        _expect("head_bits", self.head_bits, (8, 16))
        _expect("weight_method", self.weight_method, ("rtn", "rtn-weighted", "gptq", *LLM_FP4))
        _expect("group_size", self.group_size, (None, *GROUP_SIZES))
        if self.weight_bits == 8 and self.group_size is not None:
            raise ValueError(f"group_size: expected None with weight_bits 8, got {self.group_size}")
        self._check_formats()
        self._check_llm_fp4()
        self._check_static()
        for field in ("activation_clip", "kv_clip"):
            value = getattr(self, field)
            if not (value is None and field == "activation_clip") and not 0.0 < value <= 1.0:
                raise ValueError(f"{field}: expected a value in (0, 1], got {value}")
        if not 0.0 <= self.damp <= 1.0:
            raise ValueError(f"damp: expected a value in [0, 1], got {self.damp}")

    def _check_formats(self) -> None:
        """Only what some layer can do: float weights need float or 8-bit activations, and scales to match."""
        _expect("weight_format", self.weight_format, (None, *FAMILIES, *FP6_FORMATS, *FP4_FORMATS))
        _expect("activation_format", self.activation_format, (None, "fp4", *FP4_FORMATS))
        weight, activation = self.weight_format, self.activation_format
        bits = self.weight_bits if weight is None else bits_of(FAMILIES.get(weight, (weight,))[0])
        if self.weight_bits != bits or (weight is None and bits == 6):
            got = f"weight_bits {self.weight_bits} with {weight}"
            raise ValueError(f"weight_format: expected one of {self.weight_bits} bits, got {got}")
        weight_only, has_groups = self.activation_bits == 16, self.group_size is not None
        if weight_only and self.weight_bits == 8:
            raise ValueError("activation_bits: expected 4 or 8 with weight_bits 8, got 16")
        if activation is not None and (self.activation_bits != 4 or weight is None or bits != 4):
            got = f"{activation} with {weight} weights and {self.activation_bits} activation bits"
            raise ValueError(f"activation_format: expected None but for FP4 weights and 4 bits, got {got}")
        if weight is not None and not weight_only:
            if bits == 6 or has_groups or (activation is None and self.activation_bits == 4):
                got = f"{self.activation_bits} with {weight}{' in groups' if has_groups else ''}"
                raise ValueError(f"activation_bits: expected 16 with these weights, got {got}")
            if self.mean_shift or (self.quantized_calibration and self.weight_method not in LLM_FP4):
                raise ValueError("mean_shift, quantized_calibration: expected False with a weight_format")
        if weight_only and (self.mean_shift or self.quantized_calibration):
            raise ValueError("mean_shift, quantized_calibration: expected False with activation_bits 16")
        if self.scale_format is not None:
            stored = "e8m0" if self.scale_format == "mx" else self.scale_format
            check_scale_format(weight or "int4", self.group_size, stored)
            if not weight_only:
                raise ValueError(f"scale_format: expected None without activation_bits 16, got {stored}")

    def _check_llm_fp4(self) -> None:
        """What LLM-FP4's search gives, and what only it gives."""
        searched = self.weight_method in LLM_FP4
        if searched and (not set(self.weight_formats) <= set(FP4_FORMATS) or not self.weight_formats):
            raise ValueError(f"weight_format: expected FP4 with llm-fp4, got {self.weight_format}")
        plain = self.weight_method == "llm-fp4" and self.activation_bits == 16
        if searched and self.group_size is not None and not plain:
            got = f"{self.group_size} with {self.weight_method} and {self.activation_bits} activation bits"
            raise ValueError(f"group_size: expected None, or llm-fp4 and 16 activation bits, got {got}")
        if self.activation_format == "fp4" and not searched:
            raise ValueError(f"activation_format: expected one format with {self.weight_method}, got fp4")
        for field in ("static_activations", "pre_shift"):
            if getattr(self, field) and not (searched and self.activation_bits == 4):
                got = f"{self.weight_method} with {self.activation_bits} activation bits"
                raise ValueError(f"{field}: expected llm-fp4 with 4 activation bits, got {got}")

    def _check_static(self) -> None:
        """What only static channels have, and what they need."""
        _expect("static_sites", self.static_sites, ("norm", "best", "all"))
        static = self.static_channels
        if static and (self.weight_bits != 4 or self.activation_bits == 16 or self.weight_format is not None):
            got = f"{self.weight_format or self.weight_bits} and {self.activation_bits} bits"
            raise ValueError(f"static_channels: expected int4 weights, 4- or 8-bit activations, got {got}")
        if static and self.weight_method != "gptq":
            raise ValueError(f"static_channels: expected weight_method gptq, got {self.weight_method}")
        for field in ("split", "rank", "prune", "migrate_values"):
            value = getattr(self, field)
            if value and not static:
                raise ValueError(f"{field}: expected it with static_channels alone, got {value}")
        if self.split is not None and not self.split > 0:
            raise ValueError(f"split: expected None or a value above 0, got {self.split}")
        if self.prune and self.split is None:
            raise ValueError("prune: expected it with split alone, got split None")
        if not self.split_growth >= 0:
            raise ValueError(f"split_growth: expected 0 or more, got {self.split_growth}")
        if self.rank < 0:
            raise ValueError(f"rank: expected 0 or more, got {self.rank}")
        if self.prefix and (self.kv_bits != 4 or not self.needs_calibration):
            got = f"kv_bits {self.kv_bits}, weight_method {self.weight_method}"
            raise ValueError(f"prefix: expected it with a 4-bit cache and calibration, got {got}")

    @property
    def weight_formats(self) -> tuple[str, ...]:
        """The float formats that a layer may take; () for integers."""
        return () if self.weight_format is None else FAMILIES.get(self.weight_format, (self.weight_format,))

    @property
    def activation_formats(self) -> tuple[str, ...]:
        """The float formats that the activations of a layer may take; () for integers."""
        name = self.activation_format
        return () if name is None else FAMILIES.get(name, (name,))

    @property
    def needs_calibration(self) -> bool:
        """Whether `lowbit.quantize` needs token ids to run on."""
        free = self.mean_shift or self.static_channels or self.activation_clip is None
        return self.weight_method != "rtn" or free

    @property
    def needs_hessian(self) -> bool:
        """Whether the weights are chosen by the second moments of their inputs."""
        grouped = self.weight_method == "llm-fp4" and self.group_size is not None
        return self.weight_method in ("gptq", "rtn-weighted") or grouped

    @property
    def needs_inputs(self) -> bool:
        """Whether the weights are chosen by the inputs themselves, which may be quantised as well."""
        return self.weight_method in LLM_FP4 and self.group_size is None

    def to_dict(self) -> dict:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Recipe":
        """Inverse of `to_dict`; ValueError names an unknown field."""
        if not isinstance(fields, dict):
            raise ValueError(f"recipe: expected an object, got {json.dumps(fields)[:60]}")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            want = ', '.join(sorted(known))
            raise ValueError(f"recipe: expected the fields {want}, got {', '.join(unknown)}")
        return cls(**fields)

    @classmethod
    def from_name(cls, name: str) -> "Recipe":
        """The recipe of a name in `METHODS`. ValueError says where they are, and which is the closest."""
        key = " ".join(str(name).lower().split())
        if key in BASELINES:
            raise ValueError(f"recipe: expected a quantised method, got {name!r}, which is not one")
        if key not in _RECIPES:
            close = difflib.get_close_matches(key, _RECIPES, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            want = "a name that `lowbit compare --list` prints (lowbit.recipes.METHODS)"
            raise ValueError(f"recipe: expected {want}, got {name!r}{hint}")
        return _RECIPES[key]


def _expect(field: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{field}: expected one of {', '.join(map(str, allowed))}, got {value}")


def _build() -> dict[str, Recipe]:
    quarot = Recipe(rotate=True, kv_bits=4)
    rtn4 = replace(quarot, activation_clip=0.75)  # no calibration data: a fixed clip
    gptq4 = replace(quarot, weight_method="gptq", activation_clip=None)
    gptq48 = replace(quarot, weight_method="gptq", activation_bits=8)
    recipes = {
        "rtn w4a4": Recipe(),
        "rtn w4a4kv4": Recipe(kv_bits=4),
        "quarot rtn w4a4kv4": rtn4,
        "quarot gptq w4a4kv4": gptq4,
        "quarot gptq w4a8kv4": gptq48,
        "quarot rtn w8a8": Recipe(weight_bits=8, activation_bits=8, rotate=True),
        "rtn w8a8": Recipe(weight_bits=8, activation_bits=8),
    }
    for base in ("quarot gptq w4a4kv4", "quarot gptq w4a8kv4"):
        recipes |= {f"{base} g{g}": replace(recipes[base], group_size=g) for g in GROUP_SIZES}
    recipes |= {f"{n} +shift": replace(r, mean_shift=True) for n, r in recipes.items() if "gptq" in n}
    recipes |= _weight_only() | _llm_fp4() | _mergequant()
    return {name: replace(recipe, name=name) for name, recipe in recipes.items()}


def _weight_only() -> dict[str, Recipe]:
    int4 = Recipe(activation_bits=16)
    fp6 = replace(int4, weight_bits=6, weight_format="e2m3")
    fp4 = replace(int4, weight_format="e2m1")
    recipes = {f"fp6 {f}": replace(fp6, weight_format=f) for f in FP6_FORMATS}
    recipes |= {
        f"fp6 gptq {f}": replace(fp6, weight_format=f, weight_method="gptq") for f in FP6_FORMATS
    }
    recipes["zeroquant fp6"] = replace(fp6, weight_format="fp6", weight_method="gptq")
    for name, base in (("fp4", fp4), ("int4", int4)):
        recipes[f"{name} w4a16"] = base
        for g in GROUP_SIZES:
            grouped = replace(base, group_size=g, scale_format="fp16")
            recipes |= {
                f"{name} w4a16 g{g}": grouped,
                f"{name} weighted w4a16 g{g}": replace(grouped, weight_method="rtn-weighted"),
                f"{name} gptq w4a16 g{g}": replace(grouped, weight_method="gptq"),
            }
    for name in ("fp6 gptq e2m3", "fp4 gptq w4a16 g32"):
        recipes[f"{name} +head8"] = replace(recipes[name], head_bits=8)
    recipes["mxfp6"] = replace(fp6, group_size=32, scale_format="mx")
    recipes["mxfp4"] = replace(fp4, group_size=32, scale_format="mx")
    return recipes


def _llm_fp4() -> dict[str, Recipe]:
    dynamic = Recipe(weight_format="fp4", activation_format="fp4", weight_method="llm-fp4")
    weights = replace(dynamic, activation_bits=16, activation_format=None)
    grouped = replace(weights, weight_format="e2m1", scale_format="fp16", group_size=32)
    plain = replace(dynamic, static_activations=True)
    shifted = replace(plain, pre_shift=True)
    return {
        "llm-fp4 w4a16": weights,
        **{f"llm-fp4 w4a16 g{g}": replace(grouped, group_size=g) for g in GROUP_SIZES},
        "llm-fp4 w4a8": replace(weights, activation_bits=8),
        "llm-fp4 w4a4 no-pre-shift": plain,
        "llm-fp4 w4a4 pre-shift": shifted,
        "llm-fp4 w4a4kv4 pre-shift": replace(shifted, kv_bits=4),
        "quarot llm-fp4 w4a4kv4": replace(dynamic, rotate=True, kv_bits=4),
        "quarot llm-fp4 gptq w4a4kv4": replace(
            dynamic, rotate=True, kv_bits=4, weight_method="llm-fp4-gptq"
        ),
    }


def _mergequant() -> dict[str, Recipe]:
    unsplit = Recipe(
        rotate=True, kv_bits=4, weight_method="gptq", activation_clip=None, static_channels=True,
        mean_shift=True, head_bits=8,
    )  # fmt: skip
    split = replace(unsplit, split=1.5)
    recipes = {}
    for suffix, residual in (("", True), (" no-r1", False)):
        four = replace(split, rotate_residual=residual)
        recipes[f"mergequant w4a4{suffix}"] = four
        recipes[f"mergequant w4a4{suffix} no-split"] = replace(unsplit, rotate_residual=residual)
        recipes[f"mergequant w4a8{suffix}"] = replace(four, activation_bits=8)
    recipes["best w4a4kv4"] = replace(
        unsplit, rotate_residual=False, static_sites="norm", split=1.0, split_growth=0.3, group_size=64,
        quantized_calibration=True, prefix=True,
    )  # fmt: skip
    dynamic = replace(unsplit, static_channels=False, head_bits=16)
    recipes["quarot gptq w4a4kv4 g64 +shift +prefix"] = replace(dynamic, group_size=64, prefix=True)
    return recipes


_RECIPES = _build()
METHODS = BASELINES + list(_RECIPES)
