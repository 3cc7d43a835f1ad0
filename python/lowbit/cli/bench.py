"""lowbit bench: the kernel benchmarks of a source checkout, against the peers that are installed."""

import argparse
import importlib
import sys
from typing import Any

from . import output


def add_parser(commands: Any) -> None:
    p = commands.add_parser(
        "bench", help="kernel benchmarks (in a source checkout)", add_help=False,
        description="Everything after `bench` goes to bench/__main__.py; see `lowbit bench --help`.",
    )  # fmt: skip
    p.add_argument("rest", nargs=argparse.REMAINDER)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    root = output.checkout()
    if root is None or not (root / "bench" / "__main__.py").is_file():
        raise ValueError(
            "the benchmarks are not part of the installed package; run this in a source checkout"
        )
    sys.path.insert(0, str(root))
    return importlib.import_module("bench.__main__").main(args.rest) or 0
