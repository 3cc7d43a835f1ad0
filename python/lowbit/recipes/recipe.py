"""The recipes by name, and their fields."""

import dataclasses
import difflib
import json
from dataclasses import dataclass, replace

from ..formats import GROUP_SIZES

BASELINES = ["fp32", "bf16"]  # names of method tables that mean "not quantised"


@dataclass(frozen=True)
class Recipe:
    """How a model is quantised. Every field is stored in the checkpoint's config."""

    name: str = "custom"
    weight_bits: int = 4  # 4 or 8
    activation_bits: int = 4  # 4 or 8, symmetric per token
    kv_bits: int = 16  # 4 or 16, asymmetric per token and head
    group_size: int | None = None  # None = one scale per output channel; 32, 64, 128 = integer group scales
    rotate: bool = False  # QuaRot's R1, R2, R4, and R3 in a 4-bit cache
    weight_method: str = "rtn"  # "rtn" or "gptq"
    activation_clip: float | None = 1.0  # share of a token's absmax; None = searched per layer
    kv_clip: float = 0.95
    mean_shift: bool = False  # subtract a calibrated mean from the inputs, its product with W is a bias
    damp: float = 0.01  # GPTQ: share of the mean diagonal
    quantized_calibration: bool = False  # GPTQ sees activations as quantised at run time (measured: no gain)
    seed: int = 0  # of the random signs

    def __post_init__(self):
        _expect("weight_bits", self.weight_bits, (4, 8))
        _expect("activation_bits", self.activation_bits, (4, 8))
        _expect("kv_bits", self.kv_bits, (4, 16))
        _expect("weight_method", self.weight_method, ("rtn", "gptq"))
        _expect("group_size", self.group_size, (None, *GROUP_SIZES))
        if self.weight_bits == 8 and self.group_size is not None:
            raise ValueError(f"group_size: expected None with weight_bits 8, got {self.group_size}")
        for field in ("activation_clip", "kv_clip"):
            value = getattr(self, field)
            if not (value is None and field == "activation_clip") and not 0.0 < value <= 1.0:
                raise ValueError(f"{field}: expected a value in (0, 1], got {value}")
        if not 0.0 <= self.damp <= 1.0:
            raise ValueError(f"damp: expected a value in [0, 1], got {self.damp}")

    @property
    def needs_calibration(self) -> bool:
        """Whether `lowbit.quantize` needs token ids to run on."""
        return self.weight_method == "gptq" or self.mean_shift or self.activation_clip is None

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
        """The recipe of a name in `METHODS`. ValueError names the alternatives."""
        key = " ".join(str(name).lower().split())
        if key in BASELINES:
            raise ValueError(f"recipe: expected a quantised method, got {name!r}, which is not one")
        if key not in _RECIPES:
            close = difflib.get_close_matches(key, _RECIPES, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"recipe: expected one of {', '.join(map(repr, METHODS))}, got {name!r}{hint}")
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
    return {name: replace(recipe, name=name) for name, recipe in recipes.items()}


_RECIPES = _build()
METHODS = BASELINES + list(_RECIPES)
