"""The headers of the oldest torch that the library promises to build against, without its whole wheel."""

import io
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

VERSION = "2.10.0"
FOLDERS = ("csrc/stable/", "csrc/inductor/aoti_torch/", "headeronly/")
_BLOCK = 1 << 20


class RemoteFile(io.RawIOBase):
    """A file behind a URL, read in blocks by HTTP ranges."""

    def __init__(self, url: str):
        self.url, self.at, self.blocks = url, 0, {}
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
            self.size = int(answer.headers["Content-Length"])

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def readinto(self, buffer: memoryview) -> int:
        index, offset = divmod(self.at, _BLOCK)
        part = self._block(index)[offset : offset + len(buffer)] if self.at < self.size else b""
        buffer[: len(part)] = part
        self.at += len(part)
        return len(part)

    def _block(self, index: int) -> bytes:
        if index not in self.blocks:
            span = f"bytes={index * _BLOCK}-{min(self.size, (index + 1) * _BLOCK) - 1}"
            request = urllib.request.Request(self.url, headers={"Range": span})
            with urllib.request.urlopen(request, timeout=60) as answer:
                if answer.status != 206:
                    raise OSError(f"range of {self.url}: expected status 206, got {answer.status}")
                self.blocks[index] = answer.read()
        return self.blocks[index]


def wheel_url() -> str:
    """Where pip would take it from."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command += ["--quiet", "--report", report.name, f"torch=={VERSION}"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        return json.load(report)["install"][0]["download_info"]["url"]


def headers(folder: Path) -> Path:
    """The include directory in `folder`, fetched where it is not there yet. OSError or the like without a
    network.
    """
    done = folder / f"torch-{VERSION}"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as new:
            with zipfile.ZipFile(io.BufferedReader(RemoteFile(wheel_url()), _BLOCK)) as wheel:
                prefixes = tuple(f"torch/include/torch/{part}" for part in FOLDERS)
                names = [i for i in wheel.infolist() if i.filename.startswith(prefixes)]
                for info in sorted(names, key=lambda i: i.header_offset):
                    wheel.extract(info, new)
            shutil.move(Path(new) / "torch" / "include", done)
    return done
