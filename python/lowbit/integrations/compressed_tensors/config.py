"""The `quantization_config` block of compressed-tensors: read as far as lowbit can load it, else refused."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ... import formats
from .layers import INT4_FORMAT, MX_FORMATS, MX_GROUP, Storage

QUANT_METHOD = "compressed-tensors"
_MIXED = "mixed-precision"
_WHERE = "quantization_config"
_STRATEGIES = ("tensor", "channel", "group")
# what the scheme of the weights may hold besides num_bits, type, strategy and group_size
_PLAIN = {"symmetric": (True,), "dynamic": (False,), "actorder": (None, False, "weight", "static")}


@dataclass
class Schemes:
    """Targets of a checkpoint, and the storage that each stands for."""

    targets: dict[str, Storage] = field(default_factory=dict)

    def find(self, name: str) -> Storage:
        """Storage of the layer of that name: the first target by name, then by pattern, then by class."""
        for target in sorted(self.targets, key=lambda t: (t.startswith("re:"), t)):
            if target == name or (target.startswith("re:") and re.match(target[3:], name)):
                return self.targets[target]
        if "Linear" in self.targets:
            return self.targets["Linear"]
        raise ValueError(
            f"{name}: expected a config group that targets it, got only {', '.join(self.targets)}"
        )


def read_config(block: object, weights_only: bool = False) -> Schemes:
    """The schemes of a checkpoint. Raises ValueError with one sentence for what lowbit cannot do.

    block: `quantization_config` of its config.json. weights_only: leave out the quantisation of activations
    and KV cache that it asks for, instead of refusing.
    """
    method = block.get("quant_method") if isinstance(block, dict) else block
    if method != QUANT_METHOD:
        raise ValueError(f"{_WHERE}.quant_method: expected {QUANT_METHOD}, got {method!r}")
    if block.get("transform_config"):
        raise ValueError(f"{_WHERE}.transform_config: expected none, got transforms that run online")
    if (block.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise ValueError(
            f"{_WHERE}.sparsity_config: expected none, got {block['sparsity_config']['format']!r}"
        )
    if block.get("kv_cache_scheme") and not weights_only:
        raise ValueError(
            f"{_WHERE}.kv_cache_scheme: expected none, got one; weights_only=True leaves the cache as it is"
        )
    groups = block.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ValueError(f"{_WHERE}.config_groups: expected schemes by name, got {groups!r}")
    schemes = Schemes()
    for key, group in groups.items():
        where = f"{_WHERE}.config_groups[{key!r}]"
        if not isinstance(group, dict) or not isinstance(group.get("targets"), list):
            raise ValueError(f"{where}: expected a scheme with targets, got {group!r}")
        if group.get("weights") is not None:
            storage = _read_group(where, group, block.get("format"), weights_only)
            for target in group["targets"]:
                schemes.targets.setdefault(target, storage)
    if not schemes.targets:
        raise ValueError(f"{_WHERE}.config_groups: expected a scheme for weights, got none")
    return schemes


def _read_group(where: str, group: dict, default: str | None, weights_only: bool) -> Storage:
    for key in ("input_activations", "output_activations"):
        if group.get(key) is not None and not weights_only:
            hint = "weights_only=True leaves activations as they are"
            raise ValueError(f"{where}.{key}: expected none, got a scheme; {hint}")
    weights, name = group["weights"], group.get("format") or default
    kind = [weights.get("num_bits"), weights.get("type"), name]
    known = [
        [6, "float", "mxfp6-pack-quantized"],
        [4, "float", "mxfp4-pack-quantized"],
        [4, "int", INT4_FORMAT],
    ]
    if kind not in known:
        want = f"{', '.join(MX_FORMATS)} or {INT4_FORMAT} with 4 bits"
        raise ValueError(f"{where}: expected {want}, got {name} with {kind[0]} bits of type {kind[1]}")
    for key, allowed in _PLAIN.items():
        if (got := weights.get(key, allowed[0])) not in allowed:
            raise ValueError(f"{where}.weights.{key}: expected {allowed[0]}, got {got!r}")
    size, strategy = weights.get("group_size"), weights.get("strategy")
    if strategy not in _STRATEGIES:
        want = ", ".join(_STRATEGIES)
        raise ValueError(f"{where}.weights.strategy: expected one of {want}, got {strategy!r}")
    size = size if strategy == "group" else None
    sizes = (MX_GROUP,) if name in MX_FORMATS else (None, *formats.GROUP_SIZES)
    if size not in sizes or (strategy == "group") != (size is not None):
        want = " or ".join(str(s) for s in sizes if s)
        raise ValueError(f"{where}.weights.group_size: expected {want}, got {weights.get('group_size')!r}")
    return Storage(name, size)


def write_config(layers: dict[str, Storage], others: Iterable[str]) -> dict:
    """The block for a checkpoint of these layers. others: names of modules that are not quantised."""
    others = set(others) | {"lm_head"} - layers.keys()  # not among the tensors where it is tied
    groups = {}
    for i, storage in enumerate(dict.fromkeys(layers.values())):
        names = [name for name, s in layers.items() if s == storage]
        taken = others | {name for name, s in layers.items() if s != storage}
        groups[f"group_{i}"] = {
            "targets": _targets(names, taken), "weights": _weights(storage),
            "input_activations": None, "output_activations": None, "format": storage.format,
        }  # fmt: skip
    used = {storage.format for storage in layers.values()}
    return {
        "quant_method": QUANT_METHOD, "format": used.pop() if len(used) == 1 else _MIXED,
        "quantization_status": "compressed", "config_groups": groups,
        "ignore": sorted(others),  # no target names them, but vLLM wants every linear to be in either list
        "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip


def _weights(storage: Storage) -> dict:
    mx = storage.format in MX_FORMATS
    scheme = {
        "num_bits": formats.bits_of(storage.weight_format), "type": "float" if mx else "int",
        "strategy": "group" if storage.group_size else "channel", "group_size": storage.group_size,
        "symmetric": True, "dynamic": False,
    }  # fmt: skip
    return scheme | ({"scale_dtype": "torch.uint8"} if mx else {})


def _targets(names: list[str], others: set[str]) -> list[str]:
    """Patterns with the layer numbers left open where they match nothing of `others`, else the names."""
    patterns: dict[str, list[str]] = {}
    for name in names:
        pattern = re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name))
        patterns.setdefault(f"{pattern}$", []).append(name)
    targets = []
    for pattern, matched in patterns.items():
        exact = len(matched) == 1 or any(re.match(pattern, other) for other in others)
        targets += matched if exact else [f"re:{pattern}"]
    return targets
