"""Interleaved timing: every contender is timed in short slices, round after round, in one process."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_SETTLE = 0.004  # seconds between contenders, so that the previous one's worker threads stop spinning


@dataclass
class Timing:
    """Seconds per call of one contender."""

    median: float
    low: float  # 10th percentile
    high: float  # 90th percentile
    calls: int

    @property
    def spread(self) -> float:
        """(90th - 10th percentile) / median."""
        return (self.high - self.low) / self.median


@dataclass
class _Samples:
    per_slice: int
    seconds: list[float] = field(default_factory=list)


def _one(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) * 1e-9


def interleave(
    calls: dict[str, Callable[[], object]],
    rounds: int = 9,
    slice_seconds: float = 0.03,
    max_per_slice: int = 200,
) -> dict[str, Timing]:
    """Times `calls` by turns: in each round, each contender warms up and then runs about `slice_seconds`."""
    samples = {}
    for name, call in calls.items():
        call()
        once = min(_one(call), _one(call))
        samples[name] = _Samples(max(1, min(max_per_slice, int(slice_seconds / max(once, 1e-7)))))
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            names = list(calls) if turn % 2 == 0 else list(reversed(calls))
            for name in names:
                call, sample = calls[name], samples[name]
                time.sleep(_SETTLE)
                for _ in range(min(3, sample.per_slice)):
                    call()
                sample.seconds += [_one(call) for _ in range(sample.per_slice)]
    finally:
        gc.enable()
    return {name: _summary(sample.seconds) for name, sample in samples.items()}


def _summary(seconds: list[float]) -> Timing:
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[last // 10], ordered[last - last // 10], len(ordered))


def geometric_mean(values: list[float]) -> float:
    """Of positive values."""
    return statistics.geometric_mean(values)
