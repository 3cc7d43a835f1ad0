"""What the GPU benches of linear layers share: torch and humming as peers, contenders that cannot run."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .cuda_timing import copies_for
from .peers import Unavailable

Call = Callable[[], Tensor]
CANNOT = (Unavailable, NotImplementedError)
_said: set[str] = set()


def skip(reason: Exception) -> None:
    """Says once why something is left out."""
    text = str(reason).splitlines()[0]
    if text not in _said:
        _said.add(text)
        print(f"skipped: {text[:200]}")


def contenders(makers: Iterable[Callable[[], Any]], only: str | None) -> list:
    """What could be made: all peers, and those of ours whose name contains `only`."""
    found = []
    for make in makers:
        try:
            c = make()
        except CANNOT as reason:
            skip(reason)
            continue
        if c.kind == "peer" or only is None or only.lower() in c.name.lower():
            found.append(c)
    return found


def bind_checked(contenders: list, x: Tensor) -> dict[str, list[Call]]:
    """Calls by contender's name, each with its first result checked."""
    calls: dict[str, list[Call]] = {}
    for c in contenders:
        try:
            bound = c.bind(x)
            c.check(x, bound[-1]())
            calls[c.name] = bound
        except CANNOT as reason:
            skip(reason)
    return calls


class Peer:
    """A contender that is not checked."""

    kind = "peer"

    def check(self, x: Tensor, y: Tensor) -> None:
        pass


class TorchLinear(Peer):
    """torch.nn.functional.linear in the type of the weight."""

    def __init__(self, name: str, weight: Tensor, device: str):
        self.name = name
        self.weights = [weight.clone() for _ in range(copies_for(2 * weight.numel(), device))]

    def bind(self, x: Tensor) -> list[Call]:
        return [lambda w=w: torch.nn.functional.linear(x, w) for w in self.weights]


class Humming(Peer):
    """humming-kernels by its own layer class. weight_config: as humming takes it."""

    def __init__(self, name: str, weight_config: dict, weight: Tensor, device: str):
        self.name = name
        try:
            from humming.layer import HummingLayer

            layer = HummingLayer(
                shape_n=weight.shape[0], shape_k=weight.shape[1], weight_config=weight_config,
                torch_dtype=weight.dtype,
            ).to(device)  # fmt: skip
            layer.load_from_unquantized(weight)
            layer.finish_load()
        except Exception as error:
            raise Unavailable(f"humming: {type(error).__name__}: {error}") from error
        self.layer = layer

    def bind(self, x: Tensor) -> list[Call]:
        return [lambda: self.layer(x)]  # one copy: below the L2 size its numbers are too good
