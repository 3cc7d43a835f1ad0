"""The mutants still fit the sources (that they are killed takes minutes: python -m tests.mutants)."""

from collections import Counter
from pathlib import Path

import pytest

from .catalogue import MUTANTS, TESTS

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.family}: {m.old}"[:60])
def test_line_is_there_once(mutant):
    assert (CSRC / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.old != mutant.new


def test_ten_per_family():
    count = Counter(m.family for m in MUTANTS)
    assert set(count) == set(TESTS) and min(count.values()) >= 10
