"""The fuzzer of segments and manifests, for a moment."""

from __future__ import annotations

from journal_fuzz import fuzz


def test_mutated_segments_and_manifests_are_refused_or_read_as_they_were_written() -> None:
    outcomes = fuzz(4000, seed=3)
    assert min(outcomes[k] for k in ("refused", "torn", "whole", "manifest refused")) > 5
