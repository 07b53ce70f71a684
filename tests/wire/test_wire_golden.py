"""The bytes of every kind of message, pinned: a change of the format shows here, and asks for a new version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from wire_messages import EACH, frames_of

from satrap.wire import PROTOCOL, decode

GOLDEN = Path(__file__).with_name("golden.txt")
PAGE = Path(__file__).parents[2] / "docs" / "formats" / "wire.md"


def pinned() -> dict[str, list[bytes]]:
    """Name → frames: a name, and below it a line for each frame, `-` for an empty one."""
    out: dict[str, list[bytes]] = {}
    for block in GOLDEN.read_text().strip().split("\n\n"):
        name, *frames = block.splitlines()
        out[name] = [bytes.fromhex(f.strip("-")) for f in frames]
    return out


def as_text() -> str:
    """What `golden.txt` holds. Written anew only together with a new protocol version."""
    return (
        "\n\n".join("\n".join([name, *(f.hex(" ", -8) or "-" for f in frames_of(m))]) for name, m in EACH.items())
        + "\n"
    )


@pytest.mark.parametrize("name", EACH)
def test_bytes_are_those_of_version_1(name: str) -> None:
    assert PROTOCOL == 1
    assert frames_of(EACH[name]) == pinned()[name]
    assert frames_of(decode(pinned()[name])) == pinned()[name]


def test_every_pinned_message_is_still_written() -> None:
    assert pinned().keys() == EACH.keys()


def test_the_worked_example_of_the_format_page_is_what_is_written() -> None:
    example = PAGE.read_text().split("## Worked example")[1]
    frames: dict[str, bytes] = {}
    name = ""
    for line in example.splitlines():
        if title := re.match(r"    (frame \d)", line):
            name = title[1]
            frames[name] = b""
        elif row := re.match(r"    ([0-9a-f]{4})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})(  |$)", line):
            assert int(row[1], 16) == len(frames[name]), line
            frames[name] += bytes.fromhex(row[2])
    assert list(frames.values()) == frames_of(EACH["push_with_all"])
