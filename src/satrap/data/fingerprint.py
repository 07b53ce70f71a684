"""What a saved position depends on, and whether data is still the data it was saved for."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from satrap.data.source import Source
from satrap.errors import DataError


def fingerprint(source: Source, order: Mapping[str, Any]) -> dict[str, Any]:
    """Files (names below their common folder, sizes, rows where known) and the order, as plain JSON.

    Names below the common folder, so that a data folder may move as a whole.
    """
    names = [f.path for f in source.files]
    folder = os.path.commonpath([os.path.dirname(n) for n in names]) if len(names) > 1 else os.path.dirname(names[0])
    files = [
        {"name": os.path.relpath(f.path, folder or "."), "size_bytes": f.size_bytes, "rows": rows}
        for f, rows in zip(source.files, source.file_rows(), strict=True)
    ]
    return {"files": files, "order": dict(order)}


def compare(saved: Mapping[str, Any], now: Mapping[str, Any], but: Collection[str] = ()) -> None:
    """Raises DataError naming the first difference that makes a saved position meaningless; `but` these of the order's
    settings."""
    advice = (
        "a saved position in the data does not fit; restore the data, or start a new run from the checkpoint's model"
    )
    before, after = saved["files"], now["files"]
    if len(before) != len(after):
        raise DataError(
            f"the data had {len(before)} files when the position was saved and has {len(after)} now; {advice}"
        )
    for old, new in zip(before, after, strict=True):
        if old["name"] != new["name"]:
            raise DataError(f"the file '{new['name']}' was '{old['name']}' when the position was saved; {advice}")
        for what in ("size_bytes", "rows"):
            if old[what] != new[what] and None not in (old[what], new[what]):
                unit = "bytes" if what == "size_bytes" else "rows"
                raise DataError(
                    f"the file '{new['name']}' had {old[what]} {unit} when the position was saved and has {new[what]} "
                    f"now; {advice}"
                )
    # A position that says nothing of workers is of one.
    for setting, old in ({"world": 1} | saved["order"]).items():
        new = now["order"].get(setting)
        if old != new and setting not in but:
            if setting == "world":
                raise DataError(
                    f"the position was saved by {old} workers in the middle of an epoch, and there are {new} now; "
                    f"train with {old} workers, or go on from a checkpoint that was saved at the end of an epoch"
                )
            raise DataError(
                f"the rows are read in another order than when the position was saved: {setting} was {old} and is "
                f"{new} now; set it back, or start a new run from the checkpoint's model"
            )
