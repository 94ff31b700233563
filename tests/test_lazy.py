"""Lazy attributes: computed once, and by each thread for itself."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, dataclass

import pytest

from scvi_lfm._lazy import lazy_property


@dataclass(frozen=True)
class Block:
    number: int
    met: threading.Barrier

    @lazy_property
    def doubled(self) -> int:
        """Twice the number."""
        self.met.wait()  # all instances are needed at once
        return 2 * self.number


def test_instances_compute_at_the_same_time():
    met = threading.Barrier(4, timeout=30)
    blocks = [Block(number, met) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda block: block.doubled, blocks)) == [0, 2, 4, 6]
    assert [block.doubled for block in blocks] == [0, 2, 4, 6]  # a second computation would wait for four


def test_what_is_computed_belongs_to_the_instance():
    block = Block(3, threading.Barrier(1))
    assert "doubled" not in vars(block)
    assert block.doubled == 6
    assert vars(block)["doubled"] == 6
    assert Block.doubled.__doc__ == "Twice the number."
    with pytest.raises(FrozenInstanceError):
        block.number = 4
