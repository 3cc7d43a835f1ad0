"""lowbit info: what this installation found, and why anything is off."""

import argparse
import platform
from typing import Any

import torch

from . import output

# of the largest card: A100, RTX 3090, RTX 4090, H100 SXM, B200, RTX 5090
MULTIPROCESSORS = {80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}


def add_parser(commands: Any) -> None:
    p = commands.add_parser("info", help="what was found: torch, instruction sets, CUDA, GPU")
    p.add_argument(
        "--json", nargs="?", const="-", metavar="OUT", help="as JSON (default: on the standard output)"
    )
    p.add_argument(
        "--gemm",
        nargs=3,
        type=int,
        metavar=("M", "N", "K"),
        help="which CUDA kernel runs for x [M, K], weight [N, K]",
    )
    p.add_argument(
        "--sm",
        type=int,
        default=90,
        choices=list(MULTIPROCESSORS),
        help="for this compute capability (default: 90)",
    )
    p.add_argument("--activation-bits", type=int, default=8, choices=(4, 8), help="default: 8")
    p.add_argument("--weight", default="int4", choices=("int4", "int4_group", "int8"), help="default: int4")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import lowbit

    if args.gemm:
        return _gemm(args)
    output.check_output(args.json, "--json")
    found = {**lowbit.build_info(), "python": platform.python_version(), "cpu": output.cpu_name(),
             "threads": torch.get_num_threads()}  # fmt: skip
    if args.json:
        output.write_json(found, args.json)
    else:
        print("\n".join(lines(found)))
    return 0


def _gemm(args: argparse.Namespace) -> int:
    from lowbit import _ext

    m, n, k = args.gemm
    if min(args.gemm) < 1 or max(args.gemm) >= 2**31:
        raise SystemExit(f"lowbit info: --gemm: expected M, N, K of 1 to 2^31 - 1, got {m} {n} {k}")
    sms = MULTIPROCESSORS[args.sm]
    print(_ext.explain_gemm(m, n, k, args.weight, args.activation_bits, args.sm, sms))
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
    rows.append(("cuda kernels", _cuda(found["cuda_archs"])))
    rows += [("gpu", _gpu(gpu)) for gpu in found["gpus"]] or [("gpu", "none")]
    out = [f"{name:<14}{value}" for name, value in rows]
    return out + [f"note: {note}" for note in found["notes"]]


def _words(features: Any) -> str:
    return features if isinstance(features, str) else " ".join(features)


def _cuda(archs: list[str]) -> str:
    return (
        ", ".join([*(f"sm_{arch}" for arch in archs), "PTX for later cards"]) if archs else "not compiled in"
    )


def _gpu(gpu: dict[str, Any]) -> str:
    if gpu["reason"]:
        return f"{gpu['name']}: off: {gpu['reason']}"
    major, minor = divmod(gpu["sm"], 10)
    return (
        f"{gpu['name']}, compute capability {major}.{minor}, {gpu['multiprocessors']} multiprocessors; "
        f"runs {gpu['kernels']}"
    )
