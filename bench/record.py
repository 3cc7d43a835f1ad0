"""The run of a GPU bench as it grows, so that what fails, hangs or is wrong costs no more than itself."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator

import torch

from .peers import Unavailable

Attempt = Callable[[str], contextlib.AbstractContextManager]
CANNOT = (Unavailable, NotImplementedError)
_said: set[str] = set()


def skip(reason: Exception) -> None:
    """Says once why something is left out."""
    text = str(reason).splitlines()[0]
    if text not in _said:
        _said.add(text)
        print(f"skipped: {text[:200]}")


class Record:
    """The points, and what failed. save: is given all of it after each point."""

    def __init__(self, save: Callable[[dict], object]):
        self.points: list[dict] = []
        self.failed: list[dict] = []
        self._save, self._path = save, []

    def add(self, point: dict) -> None:
        self.points.append(point)
        self._save({"unfinished": True, **self.result()})

    def result(self) -> dict:
        return {"points": self.points, "failed": self.failed}

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """An exception inside is written down and goes no further, unless the card takes no more calls. What
        cannot run here is no failure.
        """
        self._path.append(name)
        if not sys.stdout.isatty():  # in a log the last of these lines names what hangs
            print("...", ", ".join(self._path), flush=True)
        try:
            yield
        except CANNOT as reason:
            skip(reason)
        except Exception as error:
            what, text = ", ".join(self._path), f"{type(error).__name__}: {error}"[:500]
            self.failed.append({"what": what, "error": text})
            traceback.print_exc(limit=-4, file=sys.stdout)
            print(f"FAILED: {what}: {text.splitlines()[0]}", flush=True)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        finally:
            self._path.pop()
