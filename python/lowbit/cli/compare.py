"""lowbit compare: one table of methods on one model and one text.

Every method's model is made, saved, freed, loaded again with `from_pretrained`, and only then measured: the
table is of the checkpoint, running the packed kernels.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import evaluate

from . import common, output
from .common import BASELINES, ModelSource
from .eval import protocol
from .quantize import refuse_quantised

DEFAULT_METHODS = (
    "fp32",
    "bf16",
    "rtn w4a4",
    "quarot rtn w4a4kv4",
    "quarot gptq w4a4kv4",
    "quarot gptq w4a4kv4 g64",
    "quarot gptq w4a8kv4",
    "quarot rtn w8a8",
    "fp6 gptq e2m3",
    "mergequant w4a4",
)
PROMPTS = ("Tell me the name of the largest ocean on Earth.", "Explain in one sentence why the sky is blue.")


@dataclass(frozen=True)
class Row:
    method: str
    bits: str
    perplexity: float
    ratio: float | None  # to the row "fp32", None where there is none
    checkpoint_bytes: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    fused: bool  # whether speed and sentences are those of the fused decoder
    quantize_seconds: float
    seconds: float  # of everything: load, quantise, save, load, measure
    generations: list[evaluate.Generation]


@dataclass(frozen=True)
class Job:
    """What all rows share."""

    source: ModelSource
    tokenizer: Any
    text: common.Text
    calibration: Tensor | None
    window: int
    windows: int | None
    prompts: list[str]
    max_new_tokens: int
    device: torch.device


def add_parser(commands: Any) -> None:
    p = commands.add_parser("compare", help="a table of methods: perplexity, size, speed, sentences")
    common.add_model(p, dtype=None)
    p.add_argument("--methods", default=",".join(DEFAULT_METHODS), help="comma-separated names (see --list)")
    p.add_argument(
        "--list", action=common.ListMethods, names=common.all_names, help="print the methods' names and exit"
    )
    common.add_text(p)
    common.add_calibration(p)
    p.add_argument(
        "--prompt", action="append", help="a sentence is generated for each (default: two questions)"
    )
    p.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="per prompt (default 32)")
    p.add_argument("--plot", metavar="PNG", help="also draw the table (needs matplotlib)")
    p.add_argument("--save-dir", metavar="DIR", help="keep the checkpoints here, one directory per method")
    p.add_argument("--overwrite", action="store_true", help="replace checkpoints that are there already")
    common.add_json(p)
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    methods = parse_methods(args.methods)
    common.need_calibration(methods, args)
    output.check_output(args.json, "--json")
    output.check_output(args.plot, "--plot")
    if args.plot:
        from . import plot  # says what is missing before the work, not after it
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {args.max_new_tokens}: expected at least 1")
    if args.save_dir:
        for method in methods:
            out = Path(args.save_dir) / slug(method)
            output.check_directory(out, "--save-dir", args.overwrite, args.model)
    device = common.set_runtime(args)
    source = common.find_model(args.model)
    refuse_quantised(source)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lowbit-") as scratch:
        source, tokenizer = open_source(source, Path(scratch))
        text, calib = common.evaluation_text(args, tokenizer), common.calibration(args, tokenizer)
        job = Job(
            source, tokenizer, text, calib and calib.ids, args.window, args.windows,
            args.prompt or list(PROMPTS), args.max_new_tokens, device,
        )  # fmt: skip
        folder = Path(args.save_dir) if args.save_dir else Path(scratch)
        rows, shape = measure_all(methods, job, folder, bool(args.save_dir), args.overwrite)
    for line in [*table(rows), "", f"perplexity: {protocol(shape)}; text: {text.description}"]:
        output.show(line, args)
    for line in sentences(rows):
        output.show(line, args)
    report = {
        "model": args.model,
        "text": text.description,
        "calibration": calib and calib.description,
        "window": shape.window,
        "windows": shape.windows,
        "tokens": shape.tokens,
        "seconds": time.perf_counter() - start,
        **output.provenance(device),
        "rows": rows,
    }
    output.write_json(report, args.json)
    if args.plot:
        with output.whole_file(args.plot) as name:
            plot.draw(output.plain(report), name)
    return 0


def parse_methods(names: str) -> list[str]:
    """Comma-separated names, each known, none twice."""
    from lowbit.recipes import Recipe

    methods = [" ".join(name.split()) for name in names.split(",") if name.strip()]
    if not methods:
        raise ValueError("--methods is empty; `lowbit compare --list` prints the names")
    for i, method in enumerate(methods):
        if method in methods[:i]:
            raise ValueError(f"--methods: {method!r} is named twice")
        if method not in BASELINES:
            Recipe.from_name(method)
    return methods


def open_source(source: ModelSource, scratch: Path) -> tuple[ModelSource, Any]:
    """The model as a directory (a GGUF file is dequantised into `scratch`, once), and its tokenizer."""
    tokenizer = common.load_tokenizer(source)
    if source.gguf_file is None:
        return source, tokenizer
    output.say(f"reading {source.name}")
    model = common.load_model(source, torch.float32, torch.device("cpu"))
    model.save_pretrained(scratch / "source")
    return replace(source, path=str(scratch / "source"), gguf_file=None), tokenizer


def measure_all(
    methods: list[str], job: Job, folder: Path, keep: bool, overwrite: bool
) -> tuple[list[Row], evaluate.Perplexity]:
    """One row per method, in order; ratios are to the row "fp32"."""
    rows, shape = [], None
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as shared:
        for i, method in enumerate(methods):
            output.say(f"[{i + 1}/{len(methods)}] {method}")
            weights = SharedWeights(Path(shared), method, methods[i + 1 :])
            row, shape = measure_method(method, job, folder / slug(method), keep, overwrite, weights)
            output.say(f"    perplexity {row.perplexity:.4g}, {row.seconds:.0f} s")
            rows.append(row)
    base = next((row.perplexity for row in rows if row.method == "fp32"), None)
    return [replace(row, ratio=base and row.perplexity / base) for row in rows], shape


class SharedWeights:
    """GPTQ weights that a later method can take over: those of recipes that differ in activations alone.

    Calibration on unquantised activations (the default) gives such recipes the same weights, bit for bit.
    """

    def __init__(self, folder: Path, method: str, later: list[str]):
        self.path = None
        if (key := self._key(method)) is not None:
            self.path = folder / slug(key.name)
            self.wanted = any(self._key(name) == key for name in later)

    @staticmethod
    def _key(method: str) -> Any:
        from lowbit.recipes import Recipe

        recipe = None if method in BASELINES else Recipe.from_name(method)
        if recipe is None or recipe.weight_method != "gptq":
            return None
        if recipe.weight_format is not None or recipe.activation_bits == 16:
            return None  # not layers of which only the activations differ
        if recipe.quantized_calibration or recipe.mean_shift:
            return None
        name = f"{recipe.weight_bits} {recipe.kv_bits} {recipe.group_size}"
        return replace(recipe, name=name, activation_bits=8, activation_clip=1.0)

    def take(self, recipe: Any, device: torch.device) -> nn.Module | None:
        """The model with `recipe`'s activations, if its weights are there and its clip needs no search."""
        if self.path is None or recipe.activation_clip is None or not self.path.exists():
            return None
        from lowbit.integrations.hf import attach
        from lowbit.nn import QuantizedLinear

        model = common.load_model(ModelSource(recipe.name, str(self.path)), "auto", device)
        for module in model.modules():
            if isinstance(module, QuantizedLinear):
                module.activation_bits, module.clip = recipe.activation_bits, recipe.activation_clip
        attach(model, recipe)
        return model

    def keep(self, checkpoint: Path) -> None:
        if self.path is not None and self.wanted and not self.path.exists():
            shutil.copytree(checkpoint, self.path)


def measure_method(
    method: str, job: Job, folder: Path, keep: bool, overwrite: bool, weights: SharedWeights
) -> tuple[Row, evaluate.Perplexity]:
    start = time.perf_counter()
    with checkpoint(folder, keep, overwrite) as out:
        bits, quantize_seconds = make_checkpoint(method, job, out, weights)
        weights.keep(out)
        common.free()
        size = evaluate.checkpoint_bytes(out)
        output.say(f"    reloading {size / 1e6:.1f} MB")
        model = common.load_model(ModelSource(method, str(out)), "auto", job.device)
        found = evaluate.perplexity(model, job.text.ids, job.window, max_windows=job.windows)
        fused = common.fuse(model)  # after the perplexity, which has to see the 4-bit keys and values
        fast = evaluate.speed(model, job.text.ids, min(512, job.window), decode=16, repeats=2)
        made = evaluate.generate(model, job.tokenizer, job.prompts, job.max_new_tokens)
    del model
    common.free()
    return Row(
        method, bits, found.perplexity, None, size, fast.prefill_tokens_per_s, fast.decode_tokens_per_s,
        fused, quantize_seconds, time.perf_counter() - start, made,
    ), found  # fmt: skip


@contextmanager
def checkpoint(folder: Path, keep: bool, overwrite: bool) -> Iterator[Path]:
    """A directory for one method's checkpoint: kept under its name if all went well, or gone afterwards."""
    if keep:
        with output.whole_directory(folder, overwrite) as out:
            yield out
    else:
        with tempfile.TemporaryDirectory(dir=folder.parent) as out:
            yield Path(out) / folder.name


def make_checkpoint(method: str, job: Job, out: Path, weights: SharedWeights) -> tuple[str, float]:
    """Quantise the model and save it in `out`; returns (bits, seconds of quantising alone)."""
    if method in BASELINES:
        model = common.load_model(job.source, BASELINES[method], job.device)
        save(model, job.tokenizer, out)
        return {"fp32": "32", "bf16": "16"}[method], 0.0
    import lowbit
    from lowbit.recipes import Recipe

    recipe = Recipe.from_name(method)
    start = time.perf_counter()
    model = weights.take(recipe, job.device)
    if model is None:
        model = common.load_model(job.source, torch.float32, job.device)
        start = time.perf_counter()
        model = lowbit.quantize(model, recipe, calibration=job.calibration)
    seconds = time.perf_counter() - start
    save(model, job.tokenizer, out)
    return bits_of(recipe), seconds


def save(model: nn.Module, tokenizer: Any, out: Path) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def bits_of(recipe: Any) -> str:
    group = f" g{recipe.group_size}" if recipe.group_size else ""
    kv = "" if recipe.activation_bits == recipe.kv_bits == 16 else f"KV{recipe.kv_bits}"
    return f"W{recipe.weight_bits}A{recipe.activation_bits}{kv}{group}"


def slug(method: str) -> str:
    """The method's name as a directory name."""
    return method.replace("+", "").replace(" ", "-").replace(os.sep, "-")


def table(rows: list[Row]) -> list[str]:
    """Aligned columns, one line per row."""
    head = ["method", "bits", "perplexity", "x fp32", "MB", "prefill tok/s", "decode tok/s", "quantise s"]
    cells = [
        [
            row.method,
            row.bits,
            f"{row.perplexity:.2f}" if row.perplexity < 1e4 else f"{row.perplexity:.3g}",
            "-" if row.ratio is None else f"{row.ratio:.3f}" if row.ratio < 100 else f"{row.ratio:.0f}",
            f"{row.checkpoint_bytes / 1e6:.1f}",
            f"{row.prefill_tokens_per_s:.0f}",
            f"{row.decode_tokens_per_s:.1f}",
            f"{row.quantize_seconds:.0f}",
        ]
        for row in rows
    ]
    width = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    text = [
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, width, strict=True))
        ).rstrip()
        for line in [head, *cells]
    ]
    return [text[0], "-" * len(text[0]), *text[1:]]


def sentences(rows: list[Row]) -> list[str]:
    """What each method wrote, prompt by prompt, on one line each."""
    lines = []
    for i, one in enumerate(rows[0].generations):
        lines += ["", f"> {one.prompt}"]
        lines += [
            f"  {row.method:<{max(len(r.method) for r in rows)}}  {_short(row.generations[i].text)}"
            for row in rows
        ]
    return lines


def _short(text: str, width: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."
