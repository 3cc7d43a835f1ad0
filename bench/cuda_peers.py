"""What the GPU benches of linear layers share: torch and humming as peers, the making of contenders."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .cuda_timing import copies_for
from .peers import Unavailable
from .record import Attempt

Call = Callable[[], Tensor]


def contenders(makers: Iterable[Callable[[], Any]], only: str | None, attempt: Attempt) -> list:
    """What could be made: all peers, and those of ours whose name contains `only`."""
    found = []
    for i, make in enumerate(makers):
        with attempt(f"contender {i}"):
            c = make()
            if c.kind == "peer" or only is None or only.lower() in c.name.lower():
                found.append(c)
    return found


def bind_checked(contenders: list, x: Tensor, attempt: Attempt) -> dict[str, list[Call]]:
    """Calls by contender's name, each with its first result checked."""
    calls: dict[str, list[Call]] = {}
    for c in contenders:
        with attempt(c.name):
            bound = c.bind(x)
            c.check(x, bound[-1]())
            calls[c.name] = bound
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
