"""The fuzzer of every reader, for a moment. `make fuzz FUZZ_INPUTS=10000000` tries as many as one likes."""

from __future__ import annotations

import pytest

from fuzz import TARGETS, capped, fuzz


@pytest.mark.parametrize("target", TARGETS)
def test_what_nobody_wrote_is_refused_or_holds_together_and_takes_no_memory(target: str) -> None:
    with capped():
        outcomes = fuzz(target, 2000, seed=1)
    # Most changes must be noticed, and some be harmless: else this tests nothing.
    assert sum(outcomes.values()) == 2000
    assert min(outcomes["refused"], 2000 - outcomes["refused"]) > 20
