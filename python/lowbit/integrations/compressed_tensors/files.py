"""Checkpoint directories: their tensors one at a time, and a rewritten copy beside them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..hf.checkpoint import read_header, replace_directory

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CONFIG = "config.json"
_WEIGHTS = (".safetensors", ".bin", ".index.json", ".gguf", ".pth", ".pt", ".h5", ".msgpack", ".onnx")


class Checkpoint:
    """A directory with config.json and safetensors files. Every header is checked at once, tensors are read
    when they are asked for.

    Raises ValueError with one sentence where a file is missing, cut short or damaged.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise ValueError(f"directory: expected a checkpoint directory, got {self.directory.name}")
        self.config = _read_json(self.directory / _CONFIG)
        self.files: dict[str, list[str]] = {}  # file name -> tensors in it
        self.modules: dict[str, dict[str, list[int]]] = {}  # module -> its tensors' names and shapes
        self._file_of: dict[str, str] = {}
        self._handles: dict[str, safe_open] = {}
        listed = self._listed()
        for file in dict.fromkeys(listed.values()) if listed else [_SINGLE]:
            header = read_header(self._path(file))
            self.files[file] = list(header)
            self._file_of |= dict.fromkeys(header, file)
            for name, entry in header.items():
                module, _, key = name.rpartition(".")
                self.modules.setdefault(module, {})[key] = entry["shape"]
        for name, file in listed.items():
            if self._file_of.get(name) != file:
                raise ValueError(f"{name}: expected it in {file}, got nothing (missing tensor)")

    @property
    def block(self) -> object:
        """`quantization_config`, or None."""
        return self.config.get("quantization_config")

    @property
    def paths(self) -> list[Path]:
        """The safetensors files."""
        return [self.directory / file for file in self.files]

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        file = self._file_of[name]
        if file not in self._handles:
            self._handles[file] = safe_open(self.directory / file, "pt")
        return self._handles[file].get_tensor(name)

    def rewrite(
        self, target: str | os.PathLike, block: dict, layers: dict[str, Callable[[], dict[str, Tensor]]]
    ) -> None:
        """Write a copy with another `quantization_config` and other tensors in some modules.

        layers: module -> its new tensors (made when its file is written); a bias is kept. Everything else, be
        it tensors or files, is copied. target appears when all is written; nothing is left otherwise.
        """
        if Path(target).exists() and os.path.samefile(target, self.directory):
            raise ValueError(f"directory: expected another one to write to, got {Path(target).name} again")
        with replace_directory(target) as temporary:
            _copy_others(self.directory, temporary)
            where, size = {}, 0
            for file, names in self.files.items():
                tensors = self._rewritten(names, layers)
                save_file(tensors, temporary / file, {"format": "pt"})
                where |= dict.fromkeys(tensors, file)
                size += sum(t.numel() * t.element_size() for t in tensors.values())
            if list(self.files) != [_SINGLE]:
                _write_json(temporary / _INDEX, {"metadata": {"total_size": size}, "weight_map": where})
            _write_json(temporary / _CONFIG, self.config | {"quantization_config": block})

    def _rewritten(self, names: list[str], layers: dict) -> dict[str, Tensor]:
        tensors = {}
        for name in names:
            module, _, key = name.rpartition(".")
            if module not in layers or key == "bias":
                tensors[name] = self.read(name)
            elif key == "weight_packed":  # the layer goes where its codes are
                tensors |= {f"{module}.{k}": t.contiguous() for k, t in layers[module]().items()}
        return tensors

    def _listed(self) -> dict[str, str]:
        """Tensor -> file of the index; {} where there is none."""
        path = self.directory / _INDEX
        if not path.exists():
            return {}
        listed = _read_json(path).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{_INDEX}: expected a weight_map, got {listed!r}")
        return listed

    def _path(self, file: str) -> Path:
        path = self.directory / file
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{_INDEX}: expected names of safetensors files, got {file!r}")
        if not path.is_file():
            raise ValueError(f"{file}: expected it in {self.directory.name}, got nothing (missing file)")
        return path


def _copy_others(source: Path, target: Path) -> None:
    """Tokenizer, generation settings, README: all files that are no weights."""
    for entry in source.iterdir():
        if entry.is_file() and not entry.name.endswith(_WEIGHTS) and entry.name != _CONFIG:
            (target / entry.name).write_bytes(entry.read_bytes())


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path.name}: expected it in {path.parent.name}, got nothing (missing file)")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path.name}: expected JSON, got something else") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: expected a JSON object, got {type(value).__name__}")
    return value


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
