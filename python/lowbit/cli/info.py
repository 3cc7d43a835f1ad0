"""lowbit info: what this installation found, and why anything is off."""

import argparse
import platform
from typing import Any

import torch

from . import output

# of the largest card: A100, RTX 3090, RTX 4090, H100 SXM, B200, RTX 5090
MULTIPROCESSORS = {80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}
SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}  # of a block
INTEGER = ("int4", "int4_group", "int8")
FLOAT = ("e3m2", "e2m3", "e2m1", "e3m0")
WEIGHT_ONLY = tuple(f"{name}{group}" for name in (*FLOAT, "int4") for group in ("", "_group"))


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
    p.add_argument(
        "--activation-bits",
        type=int,
        choices=(4, 8, 16),
        help="16: fp16 or bf16 (default: 8, and 16 for float weights)",
    )
    p.add_argument(
        "--weight",
        default="int4",
        choices=tuple(dict.fromkeys((*INTEGER, *WEIGHT_ONLY))),
        help="default: int4; _group: with a scale per group",
    )
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
    sms, bits = MULTIPROCESSORS[args.sm], args.activation_bits or (8 if args.weight in INTEGER else 16)
    if (bits == 16) != (args.weight in WEIGHT_ONLY) and args.weight not in ("int4", "int4_group"):
        want = "4 or 8" if bits == 16 else "16"
        raise SystemExit(f"lowbit info: --activation-bits: expected {want} with {args.weight}, got {bits}")
    shared = SHARED_BYTES[args.sm]
    if bits == 16:
        name = args.weight.removesuffix("_group")
        print(_ext.explain_fp_gemm(m, n, k, name, name != args.weight, args.sm, sms, shared))
    else:
        print(_ext.explain_gemm(m, n, k, args.weight, bits, args.sm, sms, shared))
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
    width = max(len(name) for name, _ in rows) + 2
    out = [f"{name:<{width}}{value}" for name, value in rows]
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
