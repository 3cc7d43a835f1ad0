"""Checkpoint files: checked before they are read, replaced only when they are complete."""

import contextlib
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from .config import build_layer

_MAX_HEADER = 100_000_000
_DTYPES = {
    torch.uint8: "U8", torch.int8: "I8", torch.int64: "I64", torch.float16: "F16", torch.float32: "F32",
    torch.int32: "I32",
}  # fmt: skip
_WEIGHT_FILES = re.compile(r"^(model|pytorch_model)[^/]*\.(safetensors|bin|index\.json)$")


def read_header(path: str | os.PathLike) -> dict:
    """Tensor name -> {dtype, shape} of a safetensors file; ValueError where it is damaged or cut short."""
    size, name = os.path.getsize(path), os.path.basename(path)
    with open(path, "rb") as f:
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise ValueError(f"{name}: expected a safetensors file, got {size} bytes that are not one")
        try:
            header = json.loads(f.read(length))
        except ValueError:
            raise ValueError(f"{name}: expected a safetensors header, got unreadable JSON") from None
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        want = 8 + length + end
        raise ValueError(f"{name}: expected {want} bytes, got {size}; the file is truncated or damaged")
    return header


def check_files(files: Iterable[str], specs: dict[str, dict]) -> None:
    """Compare the headers of the files with what each layer's spec needs; ValueError names a tensor."""
    header: dict = {}
    for path in files:
        if not str(path).endswith(".safetensors"):
            raise ValueError(f"checkpoint: expected safetensors files, got {os.path.basename(path)}")
        header |= read_header(path)
    for name, spec in specs.items():
        for key, (dtype, shape) in build_layer(spec).tensors().items():
            entry = header.get(f"{name}.{key}")
            want = f"{_DTYPES[dtype]} {list(shape)}"
            got = "nothing (missing tensor)" if entry is None else f"{entry['dtype']} {entry['shape']}"
            if got != want:
                raise ValueError(f"{name}.{key}: expected {want}, got {got}")
        if spec["bias"] and f"{name}.bias" not in header:
            raise ValueError(f"{name}.bias: expected [{spec['out_features']}], got nothing (missing tensor)")


@contextlib.contextmanager
def replace_directory(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary directory that takes `target`'s place once the block succeeds; else target is
    untouched.

    Files of an existing target stay (a tokenizer, a README), except older weights: those are replaced as a
    whole.
    """
    target = Path(target).absolute()
    if target.exists() and not target.is_dir():
        raise ValueError(f"save_directory: expected a directory, got the file {target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp is private, save_pretrained is not
        if target.exists():
            _carry_over(target, temporary)
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _carry_over(target: Path, temporary: Path) -> None:
    for entry in target.iterdir():
        if (temporary / entry.name).exists() or _WEIGHT_FILES.match(entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, temporary / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, temporary / entry.name, follow_symlinks=False)
