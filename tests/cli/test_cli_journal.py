"""`satrap journal check` and `repair`."""

from __future__ import annotations

import json
from pathlib import Path

from cli_command import Satrap

from satrap.durable.journal import Journal, segments
from satrap.durable.record import Kind
from satrap.durable.segment import Identity


def history(folder: Path) -> None:
    folder.mkdir(parents=True)
    journal = Journal(folder, Identity(0, bytes(32), 1), segment_bytes=100)
    for i in range(6):
        journal.append(Kind.MESSAGE, [bytes([i]) * 50])
    journal.close()


def test_a_damaged_journal_is_named_and_cut(called: Satrap, tmp_path: Path) -> None:
    history(tmp_path / "server-0")
    assert "records 1 to 6" in called("journal", "check", str(tmp_path)).out
    path = tmp_path / "server-0" / segments(tmp_path / "server-0")[2].name
    data = bytearray(path.read_bytes())
    data[120] ^= 1
    path.write_bytes(data)
    said = called("journal", "check", str(tmp_path), code=1).out
    assert path.name in said
    assert "damaged at byte offset" in said or "missing" in said
    assert "satrap journal repair" in said
    assert "lost" in called("journal", "repair", str(tmp_path)).out
    told = json.loads(called("journal", "check", str(tmp_path / "server-0"), "--json").out)
    assert told["histories"][0]["damage"] is None
    assert told["histories"][0]["last_record"] < 6
    assert "nothing is damaged" in called("journal", "repair", str(tmp_path)).out


def test_a_folder_without_a_history_is_refused(called: Satrap, tmp_path: Path) -> None:
    assert "no server's history" in called("journal", "check", str(tmp_path), code=1).err
