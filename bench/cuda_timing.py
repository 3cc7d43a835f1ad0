"""Interleaved timing on a GPU: each contender is a CUDA graph that walks through copies of its weights, so
that no copy is in the L2 cache when its turn comes; events around the graph give the time.
"""

import contextlib
import itertools
import statistics
from collections.abc import Callable

import torch

from .record import Attempt
from .timing import Timing, interleave

Call = Callable[[], object]


def cache_bytes() -> int:
    """Size of the L2 cache of the current card."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def copies_for(weight_bytes: int, device: str) -> int:
    """How many copies of a weight are needed so that the copies together are four times the L2 cache."""
    if device == "cpu":
        return 2
    return max(2, min(64, -(-4 * cache_bytes() // max(1, weight_bytes))))


def alone(name: str) -> contextlib.AbstractContextManager:
    """The attempt of whoever lets an exception pass."""
    return contextlib.nullcontext()


def available(calls: dict[str, list[Call]], attempt: Attempt) -> dict[str, list[Call]]:
    """Without the contenders whose op has no kernel on this device, or fails."""
    found = {}
    for name, several in calls.items():
        with attempt(name):
            several[0]()
            found[name] = several
    return found


class _Contender:
    """graph: the calls are captured once and replayed; else they are made anew each time."""

    def __init__(self, calls: list[Call], seconds: float, graph: bool = True):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls[:2]:
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        once = self._time(lambda: [call() for call in calls]) / len(calls)
        self.count = len(calls) * max(1, min(20, int(seconds / max(once * len(calls), 1e-6))))
        self.calls, self.work, self.seconds = calls, self._run, []
        if graph:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._run()
            self.work = self.graph.replay
        self.work()

    def _run(self) -> None:
        for call in itertools.islice(itertools.cycle(self.calls), self.count):
            call()

    @staticmethod
    def _time(work: Call) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def measure(self) -> None:
        self.seconds.append(self._time(self.work) / self.count)


def interleave_graphs(
    calls: dict[str, list[Call]],
    rounds: int = 9,
    seconds: float = 0.003,
    device: str = "cuda",
    attempt: Attempt = alone,
) -> dict[str, Timing]:
    """Seconds per call of each contender, by turns; its calls (one per copy of the weight) are cycled."""
    if device == "cpu":  # the same code without a GPU, for its tests
        return interleave({name: _cycle(several) for name, several in calls.items()}, rounds, seconds)
    return _by_turns(_made(calls, seconds, True, attempt), rounds)


def interleave_events(
    calls: dict[str, Call],
    rounds: int = 9,
    seconds: float = 0.003,
    device: str = "cuda",
    attempt: Attempt = alone,
) -> dict[str, Timing]:
    """As `interleave_graphs` for what cannot be captured: the calls themselves, one behind the other. Where
    Python is slower than the card, this is Python's time.
    """
    if device == "cpu":
        return interleave(calls, rounds, seconds)
    return _by_turns(_made({name: [call] for name, call in calls.items()}, seconds, False, attempt), rounds)


def _made(
    calls: dict[str, list[Call]], seconds: float, graph: bool, attempt: Attempt
) -> dict[str, _Contender]:
    found = {}
    for name, several in calls.items():
        with attempt(name):
            found[name] = _Contender(several, seconds, graph)
    return found


def _by_turns(contenders: dict[str, _Contender], rounds: int) -> dict[str, Timing]:
    for turn in range(rounds):
        names = list(contenders) if turn % 2 == 0 else list(reversed(contenders))
        for name in names:
            contenders[name].measure()
    return {name: _summary(c.seconds, c.count) for name, c in contenders.items()}


def _cycle(calls: list[Call]) -> Call:
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def _summary(seconds: list[float], count: int) -> Timing:
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return Timing(
        statistics.median(ordered), ordered[last // 10], ordered[last - last // 10], count * len(ordered)
    )
