"""lowbit export: a quantised checkpoint in another library's format, or from it."""

import argparse
from pathlib import Path
from typing import Any

from lowbit import evaluate

from . import common, output

FORMATS = ("compressed-tensors", "lowbit")


def add_parser(commands: Any) -> None:
    p = commands.add_parser("export", help="a quantised checkpoint as compressed-tensors, or back")
    p.add_argument("model", metavar="MODEL", help="a checkpoint directory of lowbit or compressed-tensors")
    p.add_argument("out", metavar="OUT", help="the checkpoint directory to make")
    p.add_argument("--to", choices=FORMATS, default=FORMATS[0], help=f"default: {FORMATS[0]}")
    p.add_argument(
        "--requantize", action="store_true",
        help="to compressed-tensors: round layers without an exact counterpart once more, to MXFP6 or MXFP4",
    )  # fmt: skip
    p.add_argument(
        "--weights-only", action="store_true",
        help="to lowbit: leave activations and KV cache as they are where the checkpoint quantises them",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    common.add_json(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lowbit.integrations import compressed_tensors

    outwards = args.to == "compressed-tensors"
    if args.requantize and not outwards:
        raise ValueError("--requantize: expected --to compressed-tensors, got --to lowbit")
    if args.weights_only and outwards:
        raise ValueError("--weights-only: expected --to lowbit, got --to compressed-tensors")
    output.check_output(args.json, "--json")
    output.check_directory(args.out, "OUT", args.overwrite, args.model)
    if not Path(args.model).is_dir():
        raise ValueError(f"model {args.model}: expected a checkpoint directory")
    common.quiet_transformers()
    with output.whole_directory(args.out, args.overwrite) as folder:
        if outwards:
            compressed_tensors.export(args.model, folder, args.requantize)
        else:
            compressed_tensors.convert(args.model, folder, args.weights_only)
    size = evaluate.checkpoint_bytes(args.out)
    output.show(f"{args.out}: {args.to}, {size / 1e6:.1f} MB", args)
    output.write_json(
        {"model": args.model, "out": args.out, "format": args.to, "checkpoint_bytes": size}, args.json
    )
    return 0
