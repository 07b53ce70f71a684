"""`make chaos` in small: two rounds, of a seed that draws a bad network and snapshots."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from chaos import Round, play


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 11])
def test_a_round_of_chaos_ends_with_an_exact_ledger(seed: int, tmp_path: Path) -> None:
    found = play(Round.drawn(random.Random(seed)), seed, tmp_path)
    assert found["kills"] + found["stops"] >= 2
