"""A short run of `table_fuzz.py`."""

from __future__ import annotations

import pytest
from table_fuzz import fuzz


@pytest.mark.parametrize("seed", [1, 2])
def test_tables_with_bounds_formats_and_a_cold_tier_agree_with_plain_dicts_through_crashes(seed: int) -> None:
    done = fuzz(60_000, seed)
    assert min(done[k] for k in ("pull", "push", "evaluate", "erase", "import", "snapshot", "crash", "cut")) > 0
