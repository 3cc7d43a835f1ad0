"""lowbit quantize: a model by a recipe into a checkpoint directory."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from lowbit import evaluate

from . import common, output


def add_parser(commands: Any) -> None:
    p = commands.add_parser("quantize", help="quantise a model and save it")
    common.add_model(p, dtype="float32")
    p.add_argument("out", metavar="OUT", help="the checkpoint directory to make")
    p.add_argument(
        "--method", default="quarot gptq w4a4kv4", help="see --list (default: quarot gptq w4a4kv4)"
    )
    p.add_argument(
        "--list",
        action=common.ListMethods,
        names=common.recipe_names,
        help="print the methods' names and exit",
    )
    common.add_calibration(p)
    p.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    common.add_json(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import lowbit
    from lowbit.recipes import Recipe

    if args.method in common.BASELINES:
        raise ValueError(
            f"--method {args.method} does not quantise; `lowbit quantize --list` prints those that do"
        )
    recipe = Recipe.from_name(args.method)
    common.need_calibration([args.method], args)
    output.check_output(args.json, "--json")
    output.check_directory(args.out, "OUT", args.overwrite, args.model)
    device = common.set_runtime(args)
    source = common.find_model(args.model)
    refuse_quantised(source)
    tokenizer = common.load_tokenizer(source)
    calib = common.calibration(args, tokenizer)
    output.say(f"loading {source.name}")
    model = common.load_model(source, common.DTYPES[args.dtype], device)
    start = time.perf_counter()
    model = lowbit.quantize(model, recipe, calibration=calib and calib.ids)
    seconds = time.perf_counter() - start
    with output.whole_directory(args.out, args.overwrite) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    size = evaluate.checkpoint_bytes(args.out)
    output.show(f"{args.out}: {args.method}, {size / 1e6:.1f} MB, {seconds:.0f} s", args)
    report = getattr(model, "quantization_report", None)
    for line in report_lines(report or []):
        output.show(line, args)
    output.write_json(
        {
            "model": source.name,
            "out": args.out,
            "method": args.method,
            "calibration": calib and calib.description,
            "checkpoint_bytes": size,
            "seconds": seconds,
            **({"layers": report} if report else {}),
            **output.provenance(device),
        },
        args.json,
    )
    return 0


def report_lines(report: list[dict]) -> list[str]:
    """What a recipe that decides layer by layer has decided, a line for each kind of linear."""
    kinds: dict[str, list[dict]] = {}
    for entry in report:
        kinds.setdefault(entry["layer"].split(".", 1)[1], []).append(entry)
    lines = []
    for kind, entries in kinds.items():
        static = [e for e in entries if e["static"]]
        line = f"{kind}: static in {len(static)} of {len(entries)} layers"
        if static:
            growth = sum(e["codes"] for e in static) / sum(e["inputs"] for e in static)
            line += f", {growth:.3f} codes per input, rank {max(e['rank'] for e in static)}"
        lines.append(line)
    return lines


def refuse_quantised(source: common.ModelSource) -> None:
    """Quantising starts from full-precision weights."""
    config = Path(source.path) / "config.json"
    if source.gguf_file is None and config.is_file():
        try:
            method = json.loads(config.read_text()).get("quantization_config", {}).get("quant_method")
        except ValueError:
            raise ValueError(f"model {source.name}: its config.json is not JSON") from None
        if method:
            raise ValueError(
                f"model {source.name} is quantised already ({method}); expected full-precision weights"
            )
