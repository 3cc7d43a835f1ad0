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
    per_round: tuple[float, ...] = ()  # the median of each round

    @property
    def spread(self) -> float:
        """(90th - 10th percentile) / median."""
        return (self.high - self.low) / self.median

    def to_dict(self) -> dict:
        """For JSON: without the rounds."""
        return {"median": self.median, "low": self.low, "high": self.high, "calls": self.calls}

    def speedup(self, other: "Timing") -> float:
        """How many times faster than `other`: the median over the rounds of the ratio within a round.

        Contenders of one round ran within seconds of each other: a machine that slows down for a while slows
        both sides of a ratio.
        """
        return statistics.median(b / a for a, b in zip(self.per_round, other.per_round, strict=True))


@dataclass
class _Samples:
    per_slice: int
    seconds: list[float] = field(default_factory=list)
    per_round: list[float] = field(default_factory=list)


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
                seconds = [_one(call) for _ in range(sample.per_slice)]
                sample.per_round.append(statistics.median(seconds))
                sample.seconds += seconds
    finally:
        gc.enable()
    return {name: _summary(sample.seconds, sample.per_round) for name, sample in samples.items()}


def _summary(seconds: list[float], per_round: list[float]) -> Timing:
    ordered = sorted(seconds)
    last = len(ordered) - 1
    low, high = ordered[last // 10], ordered[last - last // 10]
    return Timing(statistics.median(ordered), low, high, len(ordered), tuple(per_round))


def geometric_mean(values: list[float]) -> float:
    """Of positive values."""
    return statistics.geometric_mean(values)
