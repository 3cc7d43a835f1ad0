"""The `lowbit` command: quantize, export, eval, generate, compare, bench, info. One module per command, each
with `add_parser(commands)` and `run(args) -> int`.

Exit status: 0 done, 2 the user's mistake (one sentence on stderr), 130 interrupted; anything else is a fault
and shows its traceback.
"""

import argparse
import contextlib
import os
import signal
import sys

from . import bench, compare, eval, export, generate, info, quantize

COMMANDS = (quantize, export, eval, generate, compare, bench, info)


def mistakes() -> tuple[type[BaseException], ...]:
    """What one sentence says enough about. safetensors has its own error for a full disk."""
    with contextlib.suppress(ImportError):
        from safetensors import SafetensorError

        return ValueError, OSError, ImportError, SafetensorError
    return ValueError, OSError, ImportError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="lowbit", description="Language models in 4 bits: quantise, measure, run."
    )
    top.add_argument("--traceback", action="store_true", help="show the traceback of every error")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_parser(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    top = parser()
    args = top.parse_args(argv)
    with contextlib.suppress(ValueError):  # not in the main thread: then the caller handles signals
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # so that temporary files go, as with Ctrl-C
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nlowbit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `lowbit info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except mistakes() as error:
        if args.traceback:
            raise
        print(f"lowbit {args.command}: {sentence(error)}", file=sys.stderr)
        return 2


def sentence(error: BaseException) -> str:
    """The error's message on one line; a bare system error names its file."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


__all__ = ["main", "parser", "sentence"]
