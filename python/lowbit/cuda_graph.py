"""StepGraph: a decode step as one CUDA graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from . import _ext


class Tickets:
    """Zeros for the kernels of a step whose blocks count themselves: one memset instead of one per call.

    The first `lend()` finds out how many there must be; the calls of each later one get them, cleared.
    """

    def __init__(self, device: torch.device):
        with torch.inference_mode(False):
            self.words = torch.empty(0, dtype=torch.int32, device=device)

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Around the calls of one step, in their thread and on one stream."""
        self.words.zero_()
        _ext.lend_tickets(self.words)
        try:
            yield
        finally:
            asked = _ext.lend_tickets(None)
        if not self.words.numel():  # later ones stay: a graph may hold them
            with torch.inference_mode(False):  # for steps within and without
                self.words = torch.empty(asked, dtype=torch.int32, device=self.words.device)


class StepGraph:
    """run(*inputs) -> Tensor, captured once and replayed on inputs of the same shapes.

    run: reads nothing that moves between calls but its inputs, and may be called twice on the same ones (the
    first call warms up, the second is captured). The result is overwritten by the next call.
    """

    def __init__(self, run: Callable[..., Tensor], inputs: tuple[Tensor, ...]):
        with torch.inference_mode(False):  # for calls within and without
            self.inputs = tuple(torch.empty_like(t) for t in inputs)
        for to, t in zip(self.inputs, inputs, strict=True):
            to.copy_(t)
        self.device = inputs[0].device
        self.tickets = Tickets(self.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):  # streams and captures are the current card's
            side, main = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(main)
            # the tickets are made when `lend` ends, which is on the main stream: replays use them there
            with self.tickets.lend(), torch.cuda.stream(side):
                run(*self.inputs)
            main.wait_stream(side)
            with torch.cuda.graph(self.graph), self.tickets.lend():
                self.output = run(*self.inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for to, t in zip(self.inputs, inputs, strict=True):
            to.copy_(t)
        with torch.cuda.device(self.device):
            self.graph.replay()
        return self.output
