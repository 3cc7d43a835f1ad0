"""lowbit info: what this installation found, and why anything is off."""

import argparse
import platform
from typing import Any

import torch

from . import output


def add_parser(commands: Any) -> None:
    p = commands.add_parser("info", help="what was found: torch, instruction sets, CUDA, GPU")
    p.add_argument(
        "--json", nargs="?", const="-", metavar="OUT", help="as JSON (default: on the standard output)"
    )
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import lowbit

    output.check_output(args.json, "--json")
    found = {**lowbit.build_info(), "python": platform.python_version(), "cpu": output.cpu_name(),
             "threads": torch.get_num_threads()}  # fmt: skip
    if args.json:
        output.write_json(found, args.json)
    else:
        print("\n".join(lines(found)))
    return 0


def lines(found: dict[str, Any]) -> list[str]:
    """The table of `lowbit.build_info()` and this machine."""
    rows = [
        ("lowbit", found["version"]),
        ("library", found["library"]),
        ("python", found["python"]),
        ("torch", found["torch"]),
        ("cpu", f"{found['cpu']}, {found['threads']} threads"),
        ("isa in use", found["isa"]),
    ]
    for isa in found["isas"]:
        state = f"available ({_words(isa['features'])})" if isa["supported"] else f"off: {isa['reason']}"
        rows.append((f"  {isa['name']}", state))
    rows += [
        ("cuda kernels", _cuda(found["cuda_compiled"])),
        ("gpu", found["gpu"] or "none"),
    ]
    out = [f"{name:<14}{value}" for name, value in rows]
    return out + [f"note: {note}" for note in found["notes"]]


def _words(features: Any) -> str:
    return features if isinstance(features, str) else " ".join(features)


def _cuda(compiled: Any) -> str:
    if isinstance(compiled, bool) or compiled is None:
        return "compiled in" if compiled else "not compiled in"
    return _words(compiled) or "not compiled in"
