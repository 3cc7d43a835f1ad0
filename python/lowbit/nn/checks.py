"""What the layers ask of their arguments and of their inputs."""

import torch
from torch import Tensor, nn

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_linear(linear: object) -> None:
    """TypeError unless it is an `nn.Linear`; ValueError unless its weight has values that can be read."""
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear: expected nn.Linear, got {type(linear).__name__}")
    if linear.weight.device.type == "meta":
        raise ValueError("linear: expected a weight with values, got one on the meta device")


def check_clip(clip: float) -> float:
    """clip as a float; ValueError unless it is in (0, 1]."""
    if not 0.0 < clip <= 1.0:
        raise ValueError(f"clip: expected a value in (0, 1], got {clip}")
    return float(clip)


def check_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype; ValueError unless the kernels compute in it."""
    if dtype not in COMPUTE_DTYPES:
        raise ValueError(f"dtype: expected torch.float32, float16 or bfloat16, got {dtype}")
    return dtype


def checked_input(x: Tensor, in_features: int) -> Tensor:
    """x [..., in_features], as autocast wants it where that is on; RuntimeError, as `nn.Linear` has it, for
    another width: the kernels themselves know it only in whole tiles.
    """
    if x.dim() == 0 or x.shape[-1] != in_features:
        raise RuntimeError(f"x: expected [..., {in_features}], got {list(x.shape)}")
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device)) if x.is_floating_point() else x
    return x
