"""Frames that nobody meant to send: mutated ones of every kind, and random ones.

    python tests/wire/wire_fuzz.py --frames 5000000 --seed 1

`decode` may do two things with them: raise WireError, or return a message whose frames are the same bytes again.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import struct
import tracemalloc

from wire_messages import EACH, frames_of

from satrap.errors import WireError
from satrap.wire import PROTOCOL, Kind, Limits, decode, request_of

LIMITS = Limits(frame_bytes=4096, body_bytes=1024, text_bytes=512, tables=8, rows=64, dim=16, state_width=16, clients=8)
SLACK_BYTES = 32_768
"""For the objects of a message of a few tables, and for the error that names it."""
_EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1]
_SEEDS = [frames_of(m) for m in EACH.values()]


def mutated(rng: random.Random) -> list[bytes]:
    """Frames of some message with a few things wrong."""
    frames = [bytearray(f) for f in rng.choice(_SEEDS)]
    for _ in range(rng.randint(1, 4)):
        rng.choice(_MUTATIONS)(rng, frames)
    return [bytes(f) for f in frames]


def _flip(rng: random.Random, frames: list[bytearray]) -> None:
    frame = _some(rng, frames)
    if frame:
        frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)


def _edge(rng: random.Random, frames: list[bytearray]) -> None:
    frame = _some(rng, frames)
    form = rng.choice("BHIQ")
    size = struct.calcsize(form)
    if len(frame) >= size:
        at = rng.randrange(0, len(frame) - size + 1)
        struct.pack_into(f"<{form}", frame, at, rng.choice(_EDGES) & ((1 << 8 * size) - 1))


def _near(rng: random.Random, frames: list[bytearray]) -> None:
    """A byte a little larger or smaller: a count that is off by one."""
    frame = _some(rng, frames)
    if frame:
        at = rng.randrange(len(frame))
        frame[at] = (frame[at] + rng.choice([-2, -1, 1, 2])) % 256


def _cut(rng: random.Random, frames: list[bytearray]) -> None:
    frame = _some(rng, frames)
    if frame:
        del frame[rng.randrange(len(frame)) :]


def _extend(rng: random.Random, frames: list[bytearray]) -> None:
    _some(rng, frames).extend(rng.randbytes(rng.choice([1, 4, 8, 40])))


def _fewer(rng: random.Random, frames: list[bytearray]) -> None:
    if frames:
        del frames[rng.randrange(len(frames))]


def _more(rng: random.Random, frames: list[bytearray]) -> None:
    frames.insert(rng.randint(0, len(frames)), bytearray(rng.choice(rng.choice(_SEEDS))))


def _swap(rng: random.Random, frames: list[bytearray]) -> None:
    rng.shuffle(frames)


def _kind(rng: random.Random, frames: list[bytearray]) -> None:
    """One kind's bytes under the name of another."""
    if frames and len(frames[0]) > 8:
        frames[0][5] = rng.choice(list(Kind))


def _some(rng: random.Random, frames: list[bytearray]) -> bytearray:
    # The first frame is where lengths and counts are.
    return bytearray() if not frames else frames[0] if rng.random() < 0.8 else rng.choice(frames)


_MUTATIONS = [_flip, _flip, _edge, _edge, _near, _near, _cut, _extend, _fewer, _more, _swap, _kind]


def random_frames(rng: random.Random) -> list[bytes]:
    """Noise, some of it behind a header that passes."""
    frames = [rng.randbytes(rng.choice([0, 1, 39, 40, 41, 48, 56, 72, 100])) for _ in range(rng.randint(0, 5))]
    if frames and len(frames[0]) >= 40 and rng.random() < 0.8:
        entries = rng.randrange(4)
        kind, flags, body = rng.choice(list(Kind)), rng.randrange(4), len(frames[0]) - 40 - 16 * entries
        head = struct.pack(
            "<4sBBHQQIIHHI", b"STRP", PROTOCOL, kind, flags, 0, 0, 0, max(body, 0), entries, len(frames), 0
        )
        frames[0] = head + frames[0][40:]
    return frames


def check(frames: list[bytes], limits: Limits = LIMITS) -> bool:
    """Raises AssertionError unless `decode` does what it may. True: the frames are a message after all."""
    for frame in frames[:1]:
        request_of(frame)
    try:
        message = decode(frames, limits)
    except WireError:
        return False
    assert frames_of(message) == frames, [f.hex() for f in frames]
    return True


def check_memory(frames: list[bytes], limits: Limits = LIMITS) -> None:
    """Raises AssertionError when `decode` takes more memory than the frames have, and some for its objects."""
    tracemalloc.start()
    try:
        with contextlib.suppress(WireError):
            decode(frames, limits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= sum(map(len, frames)) + SLACK_BYTES, (peak, [f.hex() for f in frames])


def fuzz(count: int, seed: int, memory_every: int = 50) -> int:
    """Checks so many messages; returns how many of them were valid."""
    rng = random.Random(seed)
    valid = 0
    for i in range(count):
        frames = mutated(rng) if rng.random() < 0.8 else random_frames(rng)
        if i % memory_every == 0:
            check_memory(frames)
        valid += check(frames)
    return valid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000, help="messages to try")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for start in range(0, options.frames, 100_000):
        n = min(100_000, options.frames - start)
        print(f"{start + n:,} tried, {fuzz(n, options.seed + start):,} of the last {n:,} were valid", flush=True)


if __name__ == "__main__":
    main()
