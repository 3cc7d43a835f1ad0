"""Zeros lent to the CUDA calls of a step: the bookkeeping, which needs no card."""

import pytest
import torch
from lowbit import _ext, cuda_graph


def test_nothing_is_asked_on_a_cpu():
    assert _ext.lend_tickets(torch.zeros(4, dtype=torch.int32)) == 0
    assert _ext.lend_tickets(None) == 0


def test_the_first_step_finds_out_how_many(monkeypatch):
    """A later step that wants more gets none of them past the end, and the memory stays where it is."""
    seen, asked = [], [0, 7, 0, 7, 0, 9]

    def lend(words):
        seen.append(None if words is None else words)
        return asked[len(seen) - 1]

    monkeypatch.setattr(_ext, "lend_tickets", lend)
    tickets = cuda_graph.Tickets(torch.device("cpu"))
    with tickets.lend():
        assert seen[0].numel() == 0
    with tickets.lend():
        assert seen[2].numel() == 7 and not seen[2].any()
        seen[2].fill_(3)
    with pytest.raises(RuntimeError), tickets.lend():
        assert seen[4] is seen[2] and not seen[4].any()
        raise RuntimeError
    assert seen[5] is None and tickets.words is seen[2]
