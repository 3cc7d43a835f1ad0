"""python -m bench linear | hadamard | quantize: checks each result, then times ours and the peers by turns.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from . import hadamard, linear, quantize, report

_BENCHES = {"linear": linear, "hadamard": hadamard, "quantize": quantize}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one bench; 0 on success."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True)
    for name, module in _BENCHES.items():
        p = commands.add_parser(name, help=module.__doc__, description=module.__doc__)
        module.add_arguments(p)
        p.add_argument(
            "--threads", type=int, default=2, help="threads of ours and of every peer (default: %(default)s)"
        )
        p.add_argument("--rounds", type=int, default=9, help="slices per contender (default: %(default)s)")
        p.add_argument("--slice", type=float, default=0.03, help="seconds per slice (default: %(default)s)")
        p.add_argument("--json", metavar="FILE", help="write the run; a bare name goes to bench/results/")
    options = parser.parse_args(argv)
    if options.threads < 1 or options.rounds < 1 or not options.slice > 0:
        parser.error("--threads, --rounds and --slice must be positive")
    torch.set_num_threads(options.threads)
    env = report.environment()
    report.print_environment(env)
    with torch.inference_mode():
        result = _BENCHES[options.bench].run(options)
    if options.json:
        report.write_json(options.json, options.bench, env, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
