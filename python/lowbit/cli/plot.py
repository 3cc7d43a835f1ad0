"""The table of `lowbit compare` as a picture."""

from pathlib import Path
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError:
    raise ImportError("--plot needs matplotlib: pip install 'lowbit[demo]'") from None

INK, GRID = "#30343b", "#d5d8de"
PLAIN, QUANTISED = "#9aa3b2", "#3566b0"


def draw(report: dict[str, Any], out: Path) -> None:
    """report.json (parsed) -> PNG: perplexity, checkpoint size, prefill and decode speed of every method."""
    rows = report["rows"]
    colours = [PLAIN if row["method"] in ("fp32", "bf16") else QUANTISED for row in rows]
    figure = Figure(figsize=(14, 1.5 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 4, sharey=True, width_ratios=(3, 2, 2, 2))

    scale = "log" if _decades(rows) else "linear"
    axes[0].set_xscale(scale)
    for i, row in enumerate(rows):
        if row["perplexity"] is not None:
            axes[0].plot(row["perplexity"], i, "o", color=colours[i], markersize=9)
    _label(axes[0], [(row["perplexity"], _perplexity(row)) for row in rows], 8)
    axes[0].set_xlabel(
        f"perplexity ({scale}), {report['windows']} x {report['window']} tokens; left is better"
    )
    axes[0].set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)

    for axis, key, unit, title in (
        (axes[1], "checkpoint_bytes", 1e6, "checkpoint, MB"),
        (axes[2], "prefill_tokens_per_s", 1, "prefill, tokens/s"),
        (axes[3], "decode_tokens_per_s", 1, "decode, tokens/s"),
    ):
        values = [row[key] / unit for row in rows]
        axis.barh(range(len(rows)), values, color=colours, height=0.6)
        _label(axis, [(v, f"{v:.0f}" if v >= 100 else f"{v:.1f}") for v in values], 3)
        axis.set_xlabel(title)
        axis.set_xlim(0, 1.2 * max(values))
    axes[0].margins(x=0.3)
    for axis in axes:
        axis.grid(axis="x", color=GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=9, left=False)
    device, versions = report["device"], report["versions"]
    figure.suptitle(
        f"{Path(report['model']).name} on {device['cpu']}, {device['threads']} threads, isa {device['isa']}; "
        f"lowbit {versions['lowbit']}, torch {versions['torch']}",
        fontsize=10,
        color=INK,
    )
    figure.savefig(out, dpi=130, format="png")


def _decades(rows: list[dict[str, Any]]) -> bool:
    found = [row["perplexity"] for row in rows if row["perplexity"] is not None]
    return bool(found) and max(found) > 8 * min(found)


def _label(axis: Any, values: list[tuple[float | None, str]], gap: int) -> None:
    for i, (value, text) in enumerate(values):
        if value is not None:
            place = {"xytext": (gap, 0), "textcoords": "offset points", "va": "center"}
            axis.annotate(text, (value, i), fontsize=8, color=INK, **place)


def _perplexity(row: dict[str, Any]) -> str:
    text = f"{row['perplexity']:.1f}" if row["perplexity"] < 1e4 else f"{row['perplexity']:.2g}"
    return text if row["ratio"] is None else f"{text}  (x{row['ratio']:.3g})"
