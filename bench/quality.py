"""`python -m bench.quality REPORT...`: reports of `lowbit compare` into bench/results/quality-smollm2.json,
or, with --into, another file there.

All reports must be of one model, text, calibration and protocol. A row replaces the one of its method; every
row carries the commit, threads and time of its run. --untimed: drop seconds and tokens/s (other work ran on
the machine). --demo: this is the report of `make demo`, whose device, versions and seconds the file carries.
"""

import argparse
import json
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
SAME = ("text", "calibration", "window", "windows", "tokens")
TIMES = ("prefill_tokens_per_s", "decode_tokens_per_s", "quantize_seconds", "seconds")


def merge(old: dict | None, report: dict, timed: bool, demo: bool) -> dict:
    """`report` put into `old`; ratios are to each report's own row "fp32"."""
    if old is not None:
        for key in SAME:
            if old[key] != report[key]:
                raise ValueError(f"{key}: expected {old[key]!r} as in the other rows, got {report[key]!r}")
    run = {"commit": report["commit"], "threads": report["device"]["threads"], "time": report["time"]}
    rows = {row["method"]: row for row in old["rows"]} if old else {}
    for row in report["rows"]:
        if row["ratio"] is None:
            raise ValueError(f"{row['method']}: expected a report with the row 'fp32', got none")
        if not demo and row["method"] in ("fp32", "bf16") and row["method"] in rows:
            continue
        kept = {key: value for key, value in row.items() if timed or key not in TIMES}
        for made in kept["generations"] if not timed else ():
            made.pop("seconds", None)
        rows[row["method"]] = {**kept, "run": run}
    head = report if demo or old is None else old
    return {**{key: value for key, value in head.items() if key != "rows"}, "rows": list(rows.values())}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--into", default="quality-smollm2.json", metavar="FILE")
    options = parser.parse_args(argv)
    target = RESULTS / options.into
    if target.parent != RESULTS or target.suffix != ".json":
        parser.error(f"--into: expected the name of a .json file in bench/results, got {options.into}")
    missing = [str(path) for path in options.reports if not path.is_file()]
    if missing:
        parser.error(f"reports: expected files of `lowbit compare`, got {', '.join(missing)}")
    whole = json.loads(target.read_text()) if target.exists() else None
    for path in options.reports:
        whole = merge(whole, json.loads(path.read_text()), not options.untimed, options.demo)
    target.write_text(json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
