"""Which kernels a call is made of, by torch's profiler: where the time of a step goes."""

import re
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from . import report


def kernels(call: Callable[[], object], device: str) -> list[dict]:
    """Name, count and microseconds of each kernel of one call, longest first; [] where nothing can be seen.

    After all timing: a profiler that has once been on may slow down every later launch.
    """
    on_card = device == "cuda"
    call()
    try:
        with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as seen:
            call()
            if on_card:
                torch.cuda.synchronize()
    except RuntimeError as error:  # CUPTI is not allowed everywhere
        print(f"skipped: kernels: {str(error).splitlines()[0][:150]}")
        return []
    rows = []
    for event in seen.key_averages():
        time = event.self_device_time_total if on_card else event.self_cpu_time_total
        if time > 0:
            rows.append({"kernel": _short(event.key), "count": event.count, "us": float(time)})
    return sorted(rows, key=lambda r: -r["us"])


def _short(name: str) -> str:
    """A kernel's name without its types."""
    name = re.sub(r"^void |\(anonymous namespace\)::|lowbit::kernels::|at::native::|cutlass::", "", name)
    return name[:100]


def print_kernels(title: str, rows: list[dict], most: int = 10) -> None:
    """The longest, with their share of all of them together."""
    if not rows:
        return
    total = sum(r["us"] for r in rows)
    print(f"\n{title}: {sum(r['count'] for r in rows)} kernels, {total:.0f} us")
    table = [
        [r["kernel"][:80], f"{r['count']}", f"{r['us']:.1f}", f"{100 * r['us'] / total:.0f} %"]
        for r in rows[:most]
    ]
    report.print_table(["", "count", "us", "share"], table)
