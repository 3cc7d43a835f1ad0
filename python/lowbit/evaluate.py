"""Measure a causal language model: perplexity, speed, text, size on disk.

Perplexity follows the protocol of GPTQ (arXiv 2210.17323), QuaRot (2404.00456) and most papers between them:
the text is tokenised once, cut into windows that do not overlap, the tail is dropped, and each window is
scored alone. Nothing here knows how a model is quantised: a window is a plain call of the model, so that a
quantised KV cache is in it too.
"""

import inspect
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT_FILES = (".safetensors", ".bin", ".gguf", ".pt")
WIKITEXT2 = ("Salesforce/wikitext", "wikitext-2-raw-v1")
DATASETS = ("wikitext2",)


@dataclass(frozen=True)
class Perplexity:
    """exp(nll); nll, in nats, is a mean over `windows * (window - 1)` predicted tokens, summed in float64."""

    perplexity: float
    nll: float
    tokens: int  # read: windows * window
    windows: int
    window: int
    seconds: float


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one sequence, medians. Decode: one by one after `prefill_tokens` of context."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_tokens: int
    decode_tokens: int
    repeats: int


@dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt."""

    prompt: str
    text: str
    tokens: int
    seconds: float


def progress_bar(
    items: Iterable, desc: str, unit: str = "it", enabled: bool = True, total: int | None = None
) -> Any:
    """A tqdm bar on stderr; into a file it writes a line every few seconds instead of ten per second."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 5.0
    return tqdm(
        items, desc=desc, unit=unit, total=total, disable=not enabled, mininterval=interval,
        dynamic_ncols=True, leave=True,
    )  # fmt: skip


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _window_ids(ids: Tensor, window: int, max_windows: int | None, model: nn.Module) -> Tensor:
    """LongTensor [total] or [1, total] -> [windows, window]."""
    if ids.dim() == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.dim() != 1 or ids.dtype != torch.int64:
        raise ValueError(f"perplexity: ids is {ids.dtype} {list(ids.shape)}, expected int64 [tokens]")
    if window < 2:
        raise ValueError(f"perplexity: window = {window}, expected at least 2 tokens")
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if longest is not None and window > longest:
        raise ValueError(f"perplexity: window = {window}, but the model takes at most {longest} tokens")
    windows = ids.numel() // window
    if windows == 0:
        raise ValueError(
            f"perplexity: the text has {ids.numel()} tokens, expected at least one window of {window}"
        )
    if max_windows is not None:
        if max_windows < 1:
            raise ValueError(f"perplexity: max_windows = {max_windows}, expected at least 1")
        windows = min(windows, max_windows)
    return ids[: windows * window].view(windows, window)


def _splits_into_body_and_head(model: nn.Module, ids: Tensor) -> bool:
    """True if model(ids).logits is head(body(ids)) and nothing more (no soft cap, no logit scale).

    Then the head can run on a few positions at a time, and the [2048, vocabulary] logits never exist at once.
    """
    body = getattr(model, "base_model", None)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or body is None or body is model:
        return False
    try:
        hidden = body(ids).last_hidden_state
        logits, whole = head(hidden), model(ids).logits
    except (AttributeError, TypeError, RuntimeError):
        return False
    tolerance = 1e-3 * whole.float().abs().max()
    return logits.shape == whole.shape and bool((logits.float() - whole.float()).abs().max() <= tolerance)


def _window_nll(model: nn.Module, ids: Tensor, split: bool, chunk: int) -> float:
    """Sum over the window's shifted tokens of -log p, float64. ids [1, window]."""
    target = ids[0, 1:]
    if split:
        rows, head = model.base_model(ids).last_hidden_state[0, :-1], model.get_output_embeddings()
    else:
        rows, head = model(ids).logits[0, :-1], None
    total = torch.zeros((), dtype=torch.float64, device=ids.device)
    for part, goal in zip(rows.split(chunk), target.split(chunk), strict=True):
        logits = part if head is None else head(part)
        total += F.cross_entropy(logits.float(), goal.to(logits.device), reduction="none").double().sum()
    return total.item()


@torch.inference_mode()
def perplexity(
    model: nn.Module,
    ids: Tensor,
    window: int = 2048,
    progress: bool = True,
    max_windows: int | None = None,
    chunk: int = 256,
) -> Perplexity:
    """Perplexity of `model` on ids, LongTensor [tokens], over windows of `window` tokens that do not overlap.

    Cross entropy (in fp32, from the model's own logits) of tokens 1 .. window-1 of each window given those
    before them in it; the tail that fills no window is dropped. `chunk` positions go through the output head
    at a time.
    Raises ValueError where ids fill no window or the window is longer than the model's positions.
    """
    batches = _window_ids(ids, window, max_windows, model).to(_device(model))
    model.eval()
    start = time.perf_counter()
    split = _splits_into_body_and_head(model, batches[:1, : min(window, 16)])
    bar = progress_bar(batches, "perplexity", "window", progress)
    total, scored = 0.0, 0
    for row in bar:
        total += _window_nll(model, row[None], split, chunk)
        scored += window - 1
        bar.set_postfix_str(f"ppl {_exp(total / scored):.4g}", refresh=False)
    nll = total / scored
    return Perplexity(_exp(nll), nll, batches.numel(), len(batches), window, time.perf_counter() - start)


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf if nll == nll else math.nan


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def speed(
    model: nn.Module,
    ids: Tensor,
    prefill: int = 512,
    decode: int = 32,
    repeats: int = 3,
    seconds: float = 10.0,
    progress: bool = True,
) -> Speed:
    """Speed of one sequence: `prefill` tokens of ids, LongTensor [tokens], at once, then `decode` one by one.

    One untimed run first. Prefill computes the logits of the last position only, as `generate` does. Medians
    of the prefills and of all decode steps; no further repeat starts after `seconds`.
    """
    if min(prefill, decode, repeats) < 1:
        raise ValueError(
            f"speed: prefill, decode, repeats = {prefill}, {decode}, {repeats}, expected at least 1 each"
        )
    if ids.numel() < prefill:
        raise ValueError(f"speed: ids has {ids.numel()} tokens, expected at least prefill = {prefill}")
    device = _device(model)
    prompt = ids.reshape(1, -1)[:, :prefill].to(device)
    model.eval()
    arguments = inspect.signature(model.forward).parameters
    last_only = "logits_to_keep" in arguments
    cache = "cache" if "cache" in arguments else "past_key_values"  # the name before transformers 5.24
    prefill_s: list[float] = []
    decode_s: list[float] = []
    begin = _now(device)
    for run in progress_bar(range(repeats + 1), "speed", "run", progress):
        start = _now(device)
        if run > 1 and start - begin > seconds:
            break
        out = model(prompt, use_cache=True, logits_to_keep=1) if last_only else model(prompt, use_cache=True)
        marks = [_now(device)]
        for _ in range(decode if run else 2):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, use_cache=True, **{cache: getattr(out, cache)})
            marks.append(_now(device))
        if run:
            prefill_s.append(marks[0] - start)
            decode_s += [b - a for a, b in pairwise(marks)]
    return Speed(
        prefill / statistics.median(prefill_s),
        1 / statistics.median(decode_s),
        prefill,
        decode,
        len(prefill_s),
    )


def prompt_ids(tokenizer: Any, prompt: str, chat: bool | None = None) -> Tensor:
    """LongTensor [1, n]: the prompt as a user's turn of the chat template; as it is where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    if chat is None:
        chat = template is not None
    if not chat:
        return tokenizer(prompt, return_tensors="pt").input_ids
    if template is None:
        raise ValueError("prompt_ids: chat = True, but this tokenizer has no chat template")
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]  # fmt: skip


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: list[str],
    max_new_tokens: int = 48,
    chat: bool | None = None,
    progress: bool = True,
) -> list[Generation]:
    """Greedy continuation of each prompt, alone; the text without the prompt and without special tokens.

    Raises ValueError, before the first, where a prompt and its continuation exceed the model's positions.
    """
    model.eval()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    encoded = [prompt_ids(tokenizer, prompt, chat).to(_device(model)) for prompt in prompts]
    most = getattr(model.config, "max_position_embeddings", None)
    longest = max((ids.shape[1] for ids in encoded), default=0)
    if most is not None and longest + max_new_tokens > most:
        raise ValueError(
            f"max_new_tokens: expected at most {max(most - longest, 0)} after a prompt of {longest} tokens, "
            f"as the model takes {most}, got {max_new_tokens}"
        )
    made = []
    for prompt, ids in zip(progress_bar(prompts, "generate", "prompt", progress), encoded, strict=True):
        start = time.perf_counter()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False,
            pad_token_id=pad,
        )  # fmt: skip
        new = out[0, ids.shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        made.append(Generation(prompt, text, new.numel(), time.perf_counter() - start))
    return made


def checkpoint_bytes(path: str | Path) -> int:
    """Bytes on disk of a checkpoint's weight files (tokenizer and configuration not counted)."""
    path = Path(path)
    files: Iterator[Path] = iter([path]) if path.is_file() else path.iterdir()
    sizes = [f.stat().st_size for f in files if f.suffix in WEIGHT_FILES]
    if not sizes:
        raise ValueError(
            f"checkpoint_bytes: {path} has no weight file (expected one of {', '.join(WEIGHT_FILES)})"
        )
    return sum(sizes)


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, not empty."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"text: {path} is not a file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text: {path} is not UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise ValueError(f"text: {path} is empty")
    return text


def load_dataset_text(name: str, split: str = "test") -> str:
    """The papers' text: wikitext2 = wikitext-2-raw-v1, rows joined by two newlines; split test or train."""
    if name not in DATASETS:
        raise ValueError(f"dataset: {name!r} is unknown, expected one of {', '.join(DATASETS)}")
    try:
        import datasets
    except ImportError:
        raise ValueError(f"dataset: {name} needs the `datasets` package: pip install datasets") from None
    try:
        rows = datasets.load_dataset(*WIKITEXT2, split=split)
    except Exception as error:  # it lets the errors of four HTTP layers through, all with one meaning here
        raise ValueError(
            f"dataset: {name} could not be loaded ({type(error).__name__}); it comes from the Hugging Face "
            "hub, which must be reachable the first time; a local text needs no hub"
        ) from error
    return "\n\n".join(rows["text"])


def tokenize(tokenizer: Any, text: str) -> Tensor:
    """LongTensor [tokens] of the whole text, with the tokenizer's own special tokens (once, at the start)."""
    return tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]


def calibration_windows(ids: Tensor, samples: int, length: int) -> Tensor:
    """LongTensor [n, length]: `samples` windows spread over ids, no overlap; fewer if ids are too short."""
    if samples < 1 or length < 1:
        raise ValueError(f"calibration: samples, length = {samples}, {length}, expected at least 1 each")
    n = min(samples, ids.numel() // length)
    if n == 0:
        raise ValueError(
            f"calibration: the text has {ids.numel()} tokens, expected at least one sample of {length}"
        )
    slack = ids.numel() - n * length
    starts = [i * length + (slack * i // max(n - 1, 1)) for i in range(n)]
    return torch.stack([ids[s : s + length] for s in starts])
