"""One decoder layer, quantised, fused and not, against the unquantised layer: prefill and decode."""

import argparse

from . import model
from .model import add_arguments

__all__ = ["add_arguments", "run"]


def run(options: argparse.Namespace) -> dict:
    """As `bench.model`, without embedding and head."""
    return model.run(options, whole=False)
