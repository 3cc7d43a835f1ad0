"""python -m bench linear | fp_gemm | hadamard | quantize | attention | layer | model: checks results, then
times ours and the peers.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import (
    attention,
    cuda_fp_gemm,
    cuda_linear,
    cuda_model,
    cuda_rows,
    fp_gemm,
    hadamard,
    layer,
    linear,
    model,
    quantize,
    report,
)
from .record import Record

_BENCHES = {
    "linear": linear,
    "fp_gemm": fp_gemm,
    "hadamard": hadamard,
    "quantize": quantize,
    "layer": layer,
    "model": model,
    "attention": attention,
}
_LLAMAS = {
    "shape": ["Llama-2-7B", "Llama-3-8B"],
    "batch": list(cuda_model.BATCHES),
    "context": 1024,
    "prefill": 2048,
}
_CUDA = {
    "linear": (cuda_linear.run, {"shapes": "all", "rows": list(cuda_linear.ROWS)}),
    "fp_gemm": (
        cuda_fp_gemm.run,
        {"shapes": "square,Llama-3-8B", "rows": list(cuda_fp_gemm.ROWS)},
    ),
    "hadamard": (
        cuda_rows.run_hadamard,
        {"sizes": list(cuda_rows.SIZES), "dtypes": "float16", "megabytes": 256},
    ),
    "quantize": (cuda_rows.run_quantize, {"dtypes": "float16"}),
    "layer": (cuda_model.run_layer, _LLAMAS),
    "model": (cuda_model.run, _LLAMAS),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one bench; 0 on success."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True)
    first = argparse.ArgumentParser(add_help=False)  # the defaults of the other options depend on the device
    first.add_argument("--device", default="cpu")
    device = first.parse_known_args(argv)[0].device
    for name, module in _BENCHES.items():
        p = commands.add_parser(name, help=module.__doc__, description=module.__doc__)
        module.add_arguments(p)
        p.add_argument(
            "--threads", type=int, default=2, help="threads of ours and of every peer (default: %(default)s)"
        )
        p.add_argument("--rounds", type=int, default=9, help="slices per contender (default: %(default)s)")
        p.add_argument("--slice", type=float, default=0.03, help="seconds per slice (default: %(default)s)")
        p.add_argument(
            "--device",
            default="cpu",
            choices=("cpu", "cuda", "proxy"),
            help="cuda: the GPU bench; proxy: its code on the CPU (default: %(default)s)",
        )
        if device != "cpu" and name in _CUDA:
            p.set_defaults(slice=0.003, **_CUDA[name][1])
        p.add_argument("--json", metavar="FILE", help="write the run; a bare name goes to bench/results/")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no GPU")
    if options.device != "cpu" and options.bench not in _CUDA:
        parser.error(f"{options.bench}: expected --device cpu, got {options.device}")
    if options.threads < 1 or options.rounds < 1 or not options.slice > 0:
        parser.error("--threads, --rounds and --slice must be positive")
    torch.set_num_threads(options.threads)
    env = report.environment()
    report.print_environment(env)

    def save(result: dict) -> Path | None:
        return report.write_json(options.json, options.bench, env, result) if options.json else None

    record = options.record = Record(save)
    with torch.inference_mode():
        result = _BENCHES[options.bench].run(options) if options.device == "cpu" else _run_on_card(options)
    if options.json:
        print(f"wrote {save(result)}")
    for failure in record.failed:
        print(f"FAILED: {failure['what']}: {failure['error'].splitlines()[0]}")
    return 1 if record.failed else 0


def _run_on_card(options: argparse.Namespace) -> dict:
    """All of the result, or what there is of it when the bench as a whole fails."""
    result: dict = {}
    with contextlib.suppress(Exception), options.record.attempt(options.bench):
        result = _CUDA[options.bench][0](options, "cpu" if options.device == "proxy" else "cuda")
    return result | options.record.result()


if __name__ == "__main__":
    sys.exit(main())
