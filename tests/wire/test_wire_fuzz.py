"""Frames that nobody meant to send. `python tests/wire/wire_fuzz.py --frames 5000000` tries as many as one likes."""

from __future__ import annotations

import random

from wire_fuzz import LIMITS, check, fuzz, mutated, random_frames
from wire_messages import EACH, frames_of

from satrap.wire import Limits


def test_mutated_and_random_frames_are_refused_or_are_messages_and_take_no_memory() -> None:
    valid = fuzz(20_000, seed=3)
    # Most mutations must be noticed, and some be harmless: else this tests nothing.
    assert 500 < valid < 6000


def test_the_messages_that_are_mutated_pass_as_they_are() -> None:
    assert all(check(frames_of(m), LIMITS) for m in EACH.values())


def test_limits_of_every_day_do_not_let_more_through() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        check(mutated(rng) if rng.random() < 0.8 else random_frames(rng), Limits())
