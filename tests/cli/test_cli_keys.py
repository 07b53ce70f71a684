"""`satrap keys new`: the files, and what it says when they cannot be made."""

from __future__ import annotations

import stat
from pathlib import Path

from cli_command import Satrap

from satrap.ps import Keys, Role


def test_keys_new_writes_a_file_for_each_holder_that_nobody_else_may_read(called: Satrap, tmp_path: Path) -> None:
    out = called("keys", "new", "keys").out
    assert {p.name for p in (tmp_path / "keys").iterdir()} == {"server.key", "worker.key", "reader.key", "admin.key"}
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "keys").iterdir()} == {0o600}
    assert Keys.load(tmp_path / "keys").client(Role.WORKER).role is Role.WORKER
    assert "worker.key  workers: pull and push" in out
    assert "--keys keys" in out  # what to do with them


def test_no_secret_is_printed(called: Satrap, tmp_path: Path) -> None:
    out = called("keys", "new", "keys").out
    keys = Keys.load(tmp_path / "keys")
    secrets = [keys.server.own.secret, *(k.own.secret for k in keys.clients.values())]
    assert not [s for s in secrets if s in out]


def test_keys_that_are_there_already_are_kept(called: Satrap, tmp_path: Path) -> None:
    called("keys", "new", "keys")
    before = (tmp_path / "keys" / "server.key").read_bytes()
    outcome = called("keys", "new", "keys", code=1)
    assert "server.key is there already" in outcome.err
    assert (tmp_path / "keys" / "server.key").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_one_message(called: Satrap, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    outcome = called("keys", "new", "keys", code=1)
    assert "keys" in outcome.err
    assert "Traceback" not in outcome.err


def test_the_help_of_keys_has_examples(called: Satrap) -> None:
    for words in (("keys", "--help"), ("keys", "new", "--help")):
        assert "$ satrap keys new " in called(*words).out
