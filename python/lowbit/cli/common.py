"""Models and texts from the commands' arguments."""

import argparse
import gc
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import evaluate

from .output import say

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """A local directory, a hub name, or a directory with the name of one GGUF file in it."""

    name: str
    path: str
    gguf_file: str | None = None


@dataclass(frozen=True)
class Text:
    ids: Tensor  # int64 [tokens]
    description: str


# ---------------------------------------------------------------- arguments


def add_model(p: argparse.ArgumentParser, dtype: str | None = "auto") -> None:
    p.add_argument(
        "model", metavar="MODEL", help="a model directory, a .gguf file, or a name on the Hugging Face hub"
    )
    add_runtime(p)
    if dtype is not None:
        p.add_argument(
            "--dtype", choices=DTYPES, default=dtype, help=f"to load the weights in (default {dtype})"
        )


def add_runtime(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")
    p.add_argument("--threads", type=int, help="CPU threads (default: torch's)")


def add_text(p: argparse.ArgumentParser) -> None:
    text = p.add_mutually_exclusive_group()
    text.add_argument("--text", metavar="FILE", help="UTF-8 text to evaluate on")
    text.add_argument("--dataset", choices=evaluate.DATASETS, help="evaluate on this data set's test split")
    p.add_argument(
        "--window", type=int, default=2048, help="tokens per window (default 2048, as in the papers)"
    )
    p.add_argument("--windows", type=int, metavar="N", help="only the first N windows (default: all)")


def add_calibration(p: argparse.ArgumentParser) -> None:
    calib = p.add_mutually_exclusive_group()
    calib.add_argument("--calib", metavar="FILE", help="UTF-8 text to calibrate on")
    calib.add_argument(
        "--calib-dataset", choices=evaluate.DATASETS, help="calibrate on this data set's train split"
    )
    p.add_argument(
        "--calib-samples", type=int, default=32, metavar="N", help="calibration windows (default 32)"
    )
    p.add_argument("--calib-length", type=int, default=512, metavar="N", help="tokens in each (default 512)")


def add_json(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--json", metavar="OUT", help="write the result as JSON to this file; - is the standard output"
    )


def set_runtime(args: argparse.Namespace) -> torch.device:
    """Threads and device of the arguments; transformers and the hub's client are kept quiet."""
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads {args.threads}: expected at least 1")
        torch.set_num_threads(args.threads)
    try:
        device = torch.device(args.device)
    except RuntimeError:
        raise ValueError(f"--device {args.device}: expected cpu, cuda or cuda:INDEX") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {args.device}: expected cpu, cuda or cuda:INDEX")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch {torch.__version__} sees no CUDA device")
    quiet_transformers()
    return device


def quiet_transformers() -> None:
    try:
        from transformers.utils import logging
    except ImportError:
        raise ImportError("this command needs transformers: pip install 'lowbit[hf]'") from None
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("huggingface_hub").setLevel(CRITICAL)  # its retries; what they end in is reported


# ---------------------------------------------------------------- models and texts


def find_model(name: str) -> ModelSource:
    """MODEL of the command line. A name with one slash that is not a local path is taken for a hub name."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"model {name}: this directory has no config.json")
        return ModelSource(name, name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"model {name}: there is no such file")
        return ModelSource(name, str(path.parent), path.name)
    if path.exists():
        raise ValueError(f"model {name}: expected a model directory or a .gguf file")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ValueError(f"model {name}: no such directory or .gguf file, and not a hub name (owner/name)")
    _ask_hub(name)
    return ModelSource(name, name)


def _ask_hub(name: str) -> None:
    """One request (or a look into the hub's cache), so that a wrong name or no network is one sentence."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    say(f"no directory {name} here; asking the Hugging Face hub")
    try:
        hf_hub_download(name, "config.json")
    except LocalEntryNotFoundError:
        raise ValueError(f"model {name}: no such directory, and the hub cannot be reached") from None
    except EntryNotFoundError:
        raise ValueError(f"model {name}: this hub repository has no config.json") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"model {name}: no such directory, and no such model on the hub (or it needs a login)"
        ) from None


def load_model(source: ModelSource, dtype: str | torch.dtype, device: torch.device) -> nn.Module:
    """AutoModelForCausalLM in eval mode. A GGUF file's blocks are dequantised."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        if source.gguf_file is not None:
            model = AutoModelForCausalLM.from_pretrained(
                source.path, gguf_file=source.gguf_file, quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32 if dtype == "auto" else dtype,
            )  # fmt: skip
            # a dense model from here on: without this, transformers would refuse to save it
            model.hf_quantizer, model.is_quantized = None, False
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
        else:
            model = AutoModelForCausalLM.from_pretrained(source.path, dtype=dtype)
    except (OSError, SafetensorError) as error:
        raise _not_loaded(source, error) from error
    return model.to(device).eval()


def load_tokenizer(source: ModelSource) -> Any:
    from transformers import AutoTokenizer

    try:
        if source.gguf_file is not None:
            return AutoTokenizer.from_pretrained(source.path, gguf_file=source.gguf_file)
        return AutoTokenizer.from_pretrained(source.path)
    except (OSError, ValueError) as error:
        raise _not_loaded(source, error, "expected a tokenizer: ") from error


def _not_loaded(source: ModelSource, error: Exception, expected: str = "") -> ValueError:
    return ValueError(f"model {source.name}: {expected}{' '.join(str(error).split())}")


def evaluation_text(args: argparse.Namespace, tokenizer: Any) -> Text:
    if not args.text and not args.dataset:
        raise ValueError(
            f"nothing to evaluate on: expected --text FILE or --dataset {'|'.join(evaluate.DATASETS)}"
        )
    text = evaluate.read_text(args.text) if args.text else evaluate.load_dataset_text(args.dataset, "test")
    ids = evaluate.tokenize(tokenizer, text)
    name = os.path.basename(args.text) if args.text else f"{args.dataset} test"
    return Text(ids, f"{name} ({len(text)} characters, {ids.numel()} tokens)")


def calibration(args: argparse.Namespace, tokenizer: Any) -> Text | None:
    """int64 [n, length] in .ids, or None if no calibration text was given."""
    if not args.calib and not args.calib_dataset:
        return None
    text = (
        evaluate.read_text(args.calib)
        if args.calib
        else evaluate.load_dataset_text(args.calib_dataset, "train")
    )
    ids = evaluate.calibration_windows(
        evaluate.tokenize(tokenizer, text), args.calib_samples, args.calib_length
    )
    if len(ids) < args.calib_samples:
        say(f"note: the calibration text fills only {len(ids)} of the {args.calib_samples} windows asked for")
    name = os.path.basename(args.calib) if args.calib else f"{args.calib_dataset} train"
    return Text(ids, f"{name}, {len(ids)} x {ids.shape[1]} tokens")


def fuse(model: nn.Module) -> bool:
    """Fuse the decoder of a quantised model where that can be done; says why where it cannot."""
    if not getattr(model, "is_quantized", False):
        return False
    import lowbit
    from lowbit.fused import NotFusable

    try:
        lowbit.fuse(model)
    except NotFusable as error:
        say(f"    not fused: {str(error).removeprefix('fuse: ')}")
        return False
    return True


def free() -> None:
    """After `del model`: return its memory before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---------------------------------------------------------------- methods

BASELINES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of `compare`: not quantised


def need_calibration(methods: list[str], args: argparse.Namespace) -> None:
    """Methods that calibrate are refused without a text to do it on, before anything is loaded."""
    from lowbit.recipes import Recipe

    wanting = [m for m in methods if m not in BASELINES and Recipe.from_name(m).needs_calibration]
    if wanting and not args.calib and not args.calib_dataset:
        raise ValueError(
            f"method {wanting[0]!r} needs calibration text: expected --calib FILE or --calib-dataset NAME"
        )


def recipe_names() -> list[str]:
    from lowbit.recipes import METHODS

    return [name for name in METHODS if name not in BASELINES]


def all_names() -> list[str]:
    return [*BASELINES, *recipe_names()]


class ListMethods(argparse.Action):
    """--list: one name per line, then exit, whatever else is missing on the command line."""

    def __init__(
        self, option_strings: list[str], dest: str, names: Callable[[], list[str]], help: str | None = None
    ) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)
        self.names = names

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print("\n".join(self.names()))
        parser.exit()
