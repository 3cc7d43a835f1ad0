"""`python -m bench.readme`: rewrites the tables of README.md and docs/ from the committed results.

Between `<!-- table:NAME -->` and `<!-- /table:NAME -->`, from files in bench/results: `demo` from
demo-amx.json, `options`, `float` and `static` from quality-smollm2.json (see bench/quality.py); `linear`,
`fp_gemm` and `model` from linear-cpu.json, fp-gemm-cpu.json and model-cpu.json, with `_amx` from
linear-cpu-amx.json and so on; `layers` and `weight_only` from both machines' files.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lowbit.cli.compare import DEFAULT_METHODS

from .timing import geometric_mean

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
DOCUMENTS = ("README.md", "docs/formats.md", "docs/mergequant.md", "docs/speed.md")
BATCHES = (1, 8, 32, 128, 512)
OUT_OF_CACHE = 1 << 24  # weights
OPTIONS = (
    "quarot gptq w4a4kv4", "quarot gptq w4a4kv4 +shift", "quarot gptq w4a8kv4",
)  # fmt: skip
FLOATS = (
    "fp6 e3m2", "fp6 e2m3", "fp6 gptq e3m2", "fp6 gptq e2m3", "zeroquant fp6", "mxfp6", "fp4 w4a16",
    "int4 w4a16", "fp4 w4a16 g32", "int4 w4a16 g32", "fp4 weighted w4a16 g32", "int4 weighted w4a16 g32",
    "llm-fp4 w4a16 g32", "fp4 gptq w4a16 g32", "int4 gptq w4a16 g128", "fp6 gptq e2m3 +head8",
    "fp4 gptq w4a16 g32 +head8", "mxfp4", "llm-fp4 w4a16", "llm-fp4 w4a8", "llm-fp4 w4a4 pre-shift",
    "llm-fp4 w4a4 no-pre-shift", "llm-fp4 w4a4kv4 pre-shift", "quarot llm-fp4 w4a4kv4",
    "quarot llm-fp4 gptq w4a4kv4",
)  # fmt: skip
STATIC = (
    "quarot gptq w4a4kv4", "quarot gptq w4a4kv4 +shift", "mergequant w4a4", "mergequant w4a4 no-split",
    "mergequant w4a4 no-r1", "mergequant w4a4 no-r1 no-split", "best w4a4kv4", "quarot gptq w4a8kv4",
    "mergequant w4a8", "mergequant w4a8 no-r1",
)  # fmt: skip


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def _commits(rows: list[dict]) -> str:
    """Of the runs that made these rows."""
    return ", ".join(dict.fromkeys((row["run"]["commit"] or "")[:10] for row in rows))


def _demo(report: dict) -> str:
    rows = [["method", "perplexity", "x fp32", "checkpoint, MB", "prefill, tok/s", "decode, tok/s"]]
    taken = [row for row in report["rows"] if row["method"] in DEFAULT_METHODS]
    for row in taken:
        ppl, ratio = row["perplexity"], row["ratio"]
        rows.append(
            [
                f"`{row['method']}`",
                f"{ppl:.2f}" if ppl < 1e4 else f"{ppl:.0f}",
                f"{ratio:.3f}" if ratio < 100 else f"{ratio:.0f}",
                f"{row['checkpoint_bytes'] / 1e6:.0f}",
                f"{row['prefill_tokens_per_s']:.0f}" if "prefill_tokens_per_s" in row else "",
                f"{row['decode_tokens_per_s']:.1f}" if "decode_tokens_per_s" in row else "",
            ]
        )
    note = (
        f"\n\nSmolLM2-135M-Instruct (its published Q4_1 GGUF, dequantised, is the fp32 baseline); "
        f"{report['windows']} windows of {report['window']} tokens of Python's documentation; "
        f"{report['device']['cpu']}, {report['device']['threads']} threads, {report['device']['isa']}; torch "
        f"{report['versions']['torch']}; commit {_commits(taken)}; "
        f"{report['seconds'] / 60:.1f} minutes. From `bench/results/demo-amx.json`."
    )
    return _markdown(rows) + note


def _methods(report: dict, methods: tuple[str, ...]) -> str:
    rows = [["method", "perplexity", "x fp32", "checkpoint, MB"]]
    found = {row["method"]: row for row in report["rows"]}
    taken = [found[name] for name in methods if name in found]
    for row in taken:
        size = f"{row['checkpoint_bytes'] / 1e6:.0f}"
        rows.append([f"`{row['method']}`", f"{row['perplexity']:.2f}", f"{row['ratio']:.3f}", size])
    return (
        _markdown(rows)
        + f"\n\nThe same model, texts and windows; commit {_commits(taken)}; from "
        "`bench/results/quality-smollm2.json`."
    )


def _model(run: dict, file: str) -> str:
    rows = [["", *(p["phase"] + ", tokens/s" for p in run["points"])]]
    for name in run["points"][0]["times"]:
        cells = []
        for point in run["points"]:
            t = point["times"].get(name)
            cells.append(f"{t['tokens_per_s']:.1f} ({t['x']:.2f}x)" if t else "")
        rows.append([f"`{name}`", *cells])
    env = run["environment"]
    return (
        _markdown(rows)
        + f"\n\nRandom weights in the shape of {run['shape']}, one sequence: a prompt of {run['prefill']} "
        f"tokens, and single tokens after {run['context']}; in brackets against {run['base']}. `plain`: the "
        f"same model in as few torch calls as it takes, without transformers. {env['device']}, "
        f"{env['threads']} threads, {env['isa']}; torch {env['versions']['torch']}; commit "
        f"{(env['commit'] or '')[:10]}; from `bench/results/{file}`."
    )


def _machine(run: dict) -> str:
    env = run["environment"]
    return f"{env['device']}, {env['threads']} threads, {env['isa']}; commit {(env['commit'] or '')[:10]}"


def _means(*runs: dict, files: tuple[str, ...], peer: str | None) -> str:
    """Of all shapes, a row per machine and layer. peer: None for the fastest at each point."""
    rows, notes = [["", "layer", *(f"M = {m}" for m in BATCHES)]], []
    for run, file in zip(runs, files, strict=True):
        shapes = len({(p["n"], p["k"]) for p in run["points"]})
        notes.append(f"{_machine(run)}; {shapes} shapes; from `bench/results/{file}`")
        for name in run["summary"]:
            cells = []
            for m in BATCHES:
                times = [p for p in run["points"] if p["m"] == m]
                ratios = [p["ours"][name]["ratio"][peer or p["best_peer"]] for p in times]
                cells.append(f"{geometric_mean(ratios):.2f}x ({min(ratios):.2f})")
            rows.append([run["environment"]["isa"], name.removeprefix("lowbit "), *cells])
    return _markdown(rows) + f"\n\nGeometric mean over the shapes (worst shape). {'. '.join(notes)}."


def _linear(run: dict, file: str) -> str:
    variants = list(run["summary"])
    shapes = sorted({(p["n"], p["k"]) for p in run["points"]})
    rows = [["N x K", "layer", *(f"M = {m}" for m in BATCHES)]]
    for n, k in shapes:
        for name in variants:
            if name not in ("lowbit W4A8", "lowbit W4A4"):  # groups: in the file and in the means
                continue
            cells = []
            for m in BATCHES:
                at = [p for p in run["points"] if (p["n"], p["k"], p["m"]) == (n, k, m)]
                if not at:
                    cells.append("")
                    continue
                t = at[0]["ours"][name]
                cells.append(f"{t['median'] * 1e3:.3g} ms, {t['ratio'][at[0]['best_peer']]:.2f}x")
            rows.append([f"{n} x {k}", name.removeprefix("lowbit "), *cells])
    means = ", ".join(
        f"{name.removeprefix('lowbit ')} {s['geometric_mean']:.2f} (worst point {s['worst']:.2f})"
        for name, s in run["summary"].items()
    )
    return (
        _markdown(rows)
        + "\n\nMedian time, activations' quantisation included, and the fastest peer's time over ours (above "
        f"1: lowbit is faster). Geometric means: {means}. {_machine(run)}; from `bench/results/{file}`."
    )


def _fp_gemm(run: dict, file: str) -> str:
    """The layers whose weights no cache holds; of the others only the slowest point."""
    large = [p for p in run["points"] if p["n"] * p["k"] >= OUT_OF_CACHE]
    points = {(p["n"], p["k"], p["m"]): p for p in large}
    batches = sorted({p["m"] for p in run["points"]})
    rows = [["N x K", "weights", *(f"M = {m}" for m in batches)]]
    for n, k in dict.fromkeys((p["n"], p["k"]) for p in large):
        for name in run["summary"]:
            cells = []
            for m in batches:
                t = points[n, k, m]["ours"][name] if (n, k, m) in points else None
                cells.append(f"{t['median'] * 1e3:.3g} ms, {t['ratio']['torch bf16']:.2f}x" if t else "")
            rows.append([f"{n} x {k}", name.removeprefix("lowbit "), *cells])
    worst = {
        name.removeprefix("lowbit "): min(batch["worst"] for batch in summary.values())
        for name, summary in run["summary"].items()
    }
    slowest = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in worst.items())
    return (
        _markdown(rows)
        + "\n\nMedian time, and torch bf16's time over ours, interleaved; activations in bf16. Slowest of "
        f"all shapes and rows measured, down to 192 x 576: {slowest}. {_machine(run)}; from "
        f"`bench/results/{file}`."
    )


def _tables() -> dict[str, tuple[tuple[str, ...], Callable[..., str]]]:
    """By name: the files in bench/results, and what makes the table of their contents."""
    quality = ("quality-smollm2.json",)
    linear, weights, models = (
        (f"{bench}-cpu-amx.json", f"{bench}-cpu.json") for bench in ("linear", "fp-gemm", "model")
    )
    found: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
        "demo": (("demo-amx.json",), _demo),
        "options": (quality, partial(_methods, methods=OPTIONS)),
        "float": (quality, partial(_methods, methods=FLOATS)),
        "static": (quality, partial(_methods, methods=STATIC)),
        "layers": (linear, partial(_means, files=linear, peer=None)),
        "weight_only": (weights, partial(_means, files=weights, peer="torch bf16")),
    }
    of_a_machine = {"linear": (_linear, linear), "fp_gemm": (_fp_gemm, weights), "model": (_model, models)}
    for name, (render, files) in of_a_machine.items():
        for file, machine in zip(files, ("_amx", ""), strict=True):
            found[name + machine] = ((file,), partial(render, file=file))
    return found


def main() -> None:
    for name, (files, render) in _tables().items():
        if missing := [f for f in files if not (RESULTS / f).exists()]:
            print(f"{name}: no bench/results/{missing[0]}, left as it is")
            continue
        table = render(*(json.loads((RESULTS / f).read_text()) for f in files))
        pattern = re.compile(f"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.DOTALL)
        places = 0
        for document in (ROOT / path for path in DOCUMENTS):
            old = document.read_text()
            text, count = pattern.subn(lambda m, table=table: m[1] + table + "\n" + m[2], old)
            document.write_text(text)
            places += count
        if not places:
            raise SystemExit(f"{', '.join(DOCUMENTS)}: expected a place marked table:{name}, got none")


if __name__ == "__main__":
    main()
