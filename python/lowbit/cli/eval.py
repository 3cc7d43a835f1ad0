"""lowbit eval: perplexity by the papers' protocol, and speed."""

import argparse
from typing import Any

from lowbit import evaluate

from . import common, output


def add_parser(commands: Any) -> None:
    p = commands.add_parser("eval", help="perplexity and speed of a model, quantised or not")
    common.add_model(p)
    common.add_text(p)
    p.add_argument("--speed", action="store_true", help="also measure prefill and decode tokens/s")
    common.add_json(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    output.check_output(args.json, "--json")
    device = common.set_runtime(args)
    source = common.find_model(args.model)
    text = common.evaluation_text(args, common.load_tokenizer(source))
    output.say(f"loading {source.name}")
    model = common.load_model(source, common.DTYPES[args.dtype], device)
    measured = evaluate.perplexity(model, text.ids, args.window, max_windows=args.windows)
    fast = evaluate.speed(model, text.ids, min(512, args.window)) if args.speed else None
    output.show(f"perplexity   {measured.perplexity:.4f}", args)
    output.show(f"protocol     {protocol(measured)}", args)
    output.show(f"text         {text.description}", args)
    if fast:
        output.show(
            f"prefill      {fast.prefill_tokens_per_s:.1f} tokens/s ({fast.prefill_tokens} tokens)", args
        )
        output.show(f"decode       {fast.decode_tokens_per_s:.1f} tokens/s", args)
    output.write_json(
        {
            "model": source.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "perplexity": measured.perplexity,
            "nll": measured.nll,
            "window": measured.window,
            "windows": measured.windows,
            "tokens": measured.tokens,
            "text": text.description,
            "seconds": measured.seconds,
            "prefill_tokens_per_s": fast and fast.prefill_tokens_per_s,
            "decode_tokens_per_s": fast and fast.decode_tokens_per_s,
            **output.provenance(device),
        },
        args.json,
    )
    return 0


def protocol(measured: evaluate.Perplexity) -> str:
    return (
        f"{measured.windows} windows of {measured.window} tokens ({measured.tokens} tokens), no overlap, "
        "each scored alone, tail dropped"
    )
