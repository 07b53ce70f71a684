"""The manifest: strict about what it reads, and itself guarded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from satrap import checkpoint
from satrap.checkpoint import manifest
from satrap.errors import CheckpointError


def rewrite(saved: Path, change: Any) -> None:
    """Changes the JSON and seals it again, as a wrong writer would."""
    tree = json.loads((saved / "manifest.json").read_text())
    del tree["sha256"]
    change(tree)
    body = json.dumps(tree, indent=2).encode()[:-2]
    (saved / "manifest.json").write_bytes(body + f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode())


def test_a_manifest_survives_the_round_trip_and_is_plain_json(saved: Path) -> None:
    content = manifest.read(saved)
    assert manifest.decode(manifest.encode(content), "here") == content
    tree = json.loads((saved / "manifest.json").read_text())
    assert tree["format"] == "satrap-checkpoint"
    assert tree["tables"][0]["rows"] == 60
    assert {e["kind"] for e in tree["files"].values()} == {"dense", "optimizer", "rng", "rows"}
    for name, entry in tree["files"].items():
        data = (saved / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])


def rename_file(tree: dict[str, Any], old: str, new: str) -> None:
    tree["files"][new] = tree["files"].pop(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(stepp=3), "unknown key 'stepp'; did you mean 'step'"),
        (lambda t: t.update(format="zip"), "is not the manifest of a satrap checkpoint"),
        (lambda t: t.update(version=7), "checkpoint version 7"),
        (lambda t: t.update(step="ten"), r"Expected `int`, got `str` - at `\$.step`"),
        (lambda t: t.pop("position"), "missing required field `position`"),
        (lambda t: t["tables"][0]["spec"].update(dimm=4), "dimm"),
        (lambda t: t["tables"][0]["spec"].update(optimizer=None), "table 'user' is listed without its optimizer"),
        (lambda t: t["tables"].append(t["tables"][0]), "a table is listed twice"),
        (lambda t: rename_file(t, "rows-00001.satrap", "../rows-00001.satrap"), r"is named '\.\./rows-00001.satrap'"),
        (lambda t: rename_file(t, "rng.safetensors", "/etc/passwd"), "is named '/etc/passwd'"),
        (lambda t: t["files"].pop("dense.safetensors"), "no entry for 'dense.safetensors'"),
        (lambda t: t["files"]["rows-00001.satrap"].update(partition=9), "is named"),
        (lambda t: t.update(partitions=1), "'rows-00001.satrap': partition 1 of 1"),
        (lambda t: t["files"]["dense.safetensors"].update(bytes=-5), "dense.safetensors"),
        (lambda t: t["job"].update(nonsense=1), "the job in it cannot be read: .*nonsense"),
        (lambda t: t.update(optimizer={"$tensor": "gone"}), r"optimizer: \$tensor of 'gone'"),
        (lambda t: t.update(rng={"$pickle": "gASV"}), r"unknown tag '\$pickle'"),
        (lambda t: t["tables"][0].update(rows=61), "61 rows of table 'user', the files hold 60"),
        (lambda t: t["tables"][0].update(state_width=1), "table 'user' is not as the manifest lists it"),
        (lambda t: t["files"].pop("rows-00001.satrap"), "rows of table 'user', the files hold"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(change: Any, message: str, saved: Path) -> None:
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message) as told:
        checkpoint.verify(saved)
    assert str(saved) in str(told.value)


def test_a_checkpoint_from_before_tables_had_a_wire_format_still_loads(saved: Path) -> None:
    def forget(tree: dict[str, Any]) -> None:
        for spec in (*(t["spec"] for t in tree["tables"]), *tree["job"]["tables"]):
            assert spec.pop("wire") == "fp32"

    content = manifest.read(saved)
    rewrite(saved, forget)
    assert manifest.read(saved).tables == content.tables
    checkpoint.verify(saved)


def test_an_edited_manifest_is_refused(saved: Path) -> None:
    text = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(text.replace('"step": 10', '"step": 11', 1))
    with pytest.raises(CheckpointError, match=r"manifest.json: damaged or edited"):
        checkpoint.load(saved)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": "satrap-checkpoint"}'])
def test_what_is_no_manifest_at_all_is_refused(data: bytes, saved: Path) -> None:
    (saved / "manifest.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.load(saved)


def test_a_summary_tells_what_is_in_it(saved: Path) -> None:
    summary = checkpoint.inspect(saved)
    assert (summary.step, summary.rows, summary.partitions, summary.row_files) == (10, 120, 4, 4)
    assert [(t.spec.name, t.state_width, t.rows) for t in summary.tables] == [("user", 9, 60), ("item", 1, 60)]
    assert summary.tables[0].bytes == 60 * (8 + 16 + 36)
    assert summary.bytes_total == sum(p.stat().st_size for p in saved.iterdir())
    assert summary.dense_values == 3 * 4 + 4 + 4 * 4 + 1 + 4 + 1  # linear, batch norm (and its counter), linear
    assert summary.optimizer_values == 2 * 29 + 6
    assert (summary.position.epoch, summary.extra) == (1, {"step": 10})
    assert msgspec.structs.asdict(summary.job)["seed"] == 0
