"""The folder of checkpoints: names, which is newest, which is best, what goes.

    checkpoints/
      step-00001200/                  a checkpoint; it has this name only once it is whole and synced
      best                            a file that names one of them
      .step-00001234.tmp-1a2b3c4d/    being written, or being removed, or left by a process that died
      .step-00001200.old-5e6f7a8b/    the one of the same step while its successor takes the name

One process at a time saves into a folder (`claim` keeps others out); any number may read it.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from satrap.checkpoint.files import LOCAL, Files, read_file, remove_tree, write_small
from satrap.checkpoint.manifest import NAME
from satrap.checkpoint.rows import ADVICE
from satrap.errors import CheckpointError

_STEP = re.compile(r"step-(\d{8,})")
_ASIDE = re.compile(r"\.(step-\d{8,})\.(tmp|old)-[0-9a-f]{8}")
_SMALL = re.compile(r"\.best\.tmp-[0-9a-f]{8}")
BEST = "best"


def step_name(step: int) -> str:
    """Directory name of a step's checkpoint.

    >>> step_name(1234)
    'step-00001234'
    """
    return f"step-{step:08d}"


def aside(name: str, kind: str) -> str:
    """A name of the same folder that no reader takes for a checkpoint; `kind` is tmp or old."""
    return f".{name}.{kind}-{secrets.token_hex(4)}"


def checkpoints(folder: str | Path, files: Files = LOCAL) -> list[Path]:
    """Whole checkpoints in a run folder or its `checkpoints/`, oldest step first.

    A process that died between the two renames of replacing a step's checkpoint leaves the old one aside; it counts.
    """
    found = _by_step(_home(Path(folder), files), files)
    return [found[step] for step in sorted(found)]


def _by_step(folder: Path, files: Files) -> dict[int, Path]:
    found: dict[int, Path] = {}
    names = files.names(folder)
    for name in names:
        if (m := _ASIDE.fullmatch(name)) and m.group(2) == "old" and NAME in files.names(folder / name):
            found[int(m.group(1)[5:])] = folder / name
    for name in names:
        if (m := _STEP.fullmatch(name)) and NAME in files.names(folder / name):
            found[int(m.group(1))] = folder / name
    return found


def latest(folder: str | Path, files: Files = LOCAL) -> Path | None:
    """The checkpoint of the highest step in a run folder (or its `checkpoints/`); None where there is none."""
    return next(reversed(checkpoints(folder, files)), None)


def find(path: str | Path, files: Files = LOCAL) -> Path:
    """The checkpoint a person means: its directory, or a run folder's newest. Raises CheckpointError."""
    path = Path(path)
    if NAME in files.names(path):
        return path
    if _STEP.fullmatch(path.name) and files.is_directory(path):
        raise CheckpointError(f"{path / NAME}: missing, so this is no checkpoint. {ADVICE}")
    newest = latest(path, files)
    if newest is None:
        what = "it holds no checkpoint" if files.is_directory(path) else "there is no such directory"
        raise CheckpointError(
            f"{path}: {what}; give a checkpoint (…/checkpoints/step-00001234) or a run folder that has one"
        )
    return newest


def _home(folder: Path, files: Files) -> Path:
    inner = folder / "checkpoints"
    return inner if files.is_directory(inner) else folder


def mark_best(checkpoint: str | Path, files: Files = LOCAL) -> None:
    """Names a checkpoint the best of its folder; retention keeps it. Raises CheckpointError."""
    checkpoint = Path(checkpoint)
    try:
        write_small(checkpoint.parent / BEST, f"{checkpoint.name}\n".encode(), files)
    except OSError as e:
        raise CheckpointError(f"cannot write {checkpoint.parent / BEST}: {e.strerror}") from e


def best(folder: str | Path, files: Files = LOCAL) -> Path | None:
    """The checkpoint named best in a run folder (or its `checkpoints/`); None where none was named.

    Raises CheckpointError when the one named is not there.
    """
    folder = _home(Path(folder), files)
    if BEST not in files.names(folder):
        return None
    try:
        name = read_file(folder / BEST, files).decode().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise CheckpointError(f"cannot read {folder / BEST}: {e}") from e
    match = _STEP.fullmatch(name)
    # By step, not by name: its directory may be the one that waits aside for its successor.
    found = _by_step(folder, files).get(int(match.group(1))) if match else None
    if found is None:
        raise CheckpointError(f"{folder / BEST} names '{name[:80]}', which is not a checkpoint in that folder")
    return found


def retain(folder: str | Path, keep: int, files: Files = LOCAL) -> list[Path]:
    """Removes all but the newest `keep` checkpoints and the best; returns what was removed. Raises CheckpointError."""
    folder = _home(Path(folder), files)
    try:
        clean(folder, files)
        steps = [p for p in checkpoints(folder, files) if _STEP.fullmatch(p.name)]
        named = read_file(folder / BEST, files).decode(errors="replace").strip() if BEST in files.names(folder) else ""
        gone = [p for p in steps[: max(0, len(steps) - keep)] if p.name != named]
        for path in gone:
            discard(path, files)
    except OSError as e:
        raise CheckpointError(f"cannot remove old checkpoints in {folder}: {e.strerror} ({e.filename})") from e
    return gone


def discard(path: Path, files: Files = LOCAL) -> None:
    """Removes a checkpoint: first its name, durably, then its files, so that no reader meets half of one."""
    match = _ASIDE.fullmatch(path.name)
    target = path.with_name(aside(match.group(1) if match else path.name, "tmp"))
    files.rename(path, target)
    files.sync_directory(path.parent)
    remove_tree(target, files)


def clean(folder: Path, files: Files = LOCAL) -> None:
    """Puts right what a process that died has left: drafts go, an old checkpoint whose successor never took the name
    gets it back. Raises OSError."""
    names = files.names(folder)
    for name in names:
        if _SMALL.fullmatch(name):
            files.remove_file(folder / name)
        if not (m := _ASIDE.fullmatch(name)):
            continue
        if m.group(2) == "tmp":
            remove_tree(folder / name, files)
        elif m.group(1) in names:
            files.sync_directory(folder)  # the successor's name must be durable before the old one goes
            discard(folder / name, files)
        else:
            files.rename(folder / name, folder / m.group(1))
            files.sync_directory(folder)
