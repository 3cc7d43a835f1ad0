"""lowbit generate: greedy text from a model, quantised or not."""

import argparse
from typing import Any

from lowbit import evaluate

from . import common, output


def add_parser(commands: Any) -> None:
    p = commands.add_parser("generate", help="write text with a model (greedy)")
    common.add_model(p)
    p.add_argument("--prompt", action="append", required=True, help="may be given several times")
    p.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="per prompt (default 64)")
    p.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without the chat template"
    )
    p.add_argument("--no-fuse", action="store_true", help="run a quantised model's own decoder layers")
    common.add_json(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {args.max_new_tokens}: expected at least 1")
    if not all(args.prompt):
        raise ValueError("--prompt is empty")
    output.check_output(args.json, "--json")
    device = common.set_runtime(args)
    source = common.find_model(args.model)
    output.say(f"loading {source.name}")
    tokenizer = common.load_tokenizer(source)
    model = common.load_model(source, common.DTYPES[args.dtype], device)
    if not args.no_fuse:
        common.fuse(model)
    made = evaluate.generate(
        model, tokenizer, args.prompt, args.max_new_tokens, chat=False if args.raw else None
    )
    for one in made:
        output.show(f"> {one.prompt}", args)
        output.show(one.text, args)
        output.show("", args)
    output.write_json({"model": source.name, "generations": made, **output.provenance(device)}, args.json)
    return 0
