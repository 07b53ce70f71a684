"""The folder of checkpoints: names, which is newest, which is best, what goes.

    checkpoints/
      step-00001200/                  a checkpoint; it has this name only once it is whole and synced
      step-00001200.2/                on an object store: one of the same step, where that name was taken
      best                            a file that names one of them
      .step-00001234.tmp-1a2b3c4d/    being written, or being removed, or left by a process that died
      .step-00001200.old-5e6f7a8b/    the one of the same step while its successor takes the name

One process at a time saves into a folder (`claim` keeps others out); any number may read it. Where a job says so, a
run's `checkpoints` is a text file instead that says where they are.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from satrap.checkpoint.manifest import NAME
from satrap.checkpoint.objects import ObjectFiles
from satrap.checkpoint.places import located, place, reading
from satrap.durable.files import LOCAL, Files, read_file, remove_tree, write_small
from satrap.durable.rows import ADVICE
from satrap.errors import CheckpointError

_STEP = re.compile(r"step-(\d{8,})(?:\.(\d{1,6}))?")
_ASIDE = re.compile(r"\.(step-\d{8,})\.(tmp|old)-[0-9a-f]{8}")
_SMALL = re.compile(r"\.best\.tmp-[0-9a-f]{8}")
BEST, LATEST = "best", "latest"
CHECKPOINTS = "checkpoints"
"""In a run folder: the folder of its checkpoints, or a file that names it."""
_PLACE_BYTES = 4096
"""Longest name of a place."""


def step_name(step: int) -> str:
    """Directory name of a step's checkpoint.

    >>> step_name(1234)
    'step-00001234'
    """
    return f"step-{step:08d}"


def aside(name: str, kind: str) -> str:
    """A name of the same folder that no reader takes for a checkpoint; `kind` is tmp or old."""
    return f".{name}.{kind}-{secrets.token_hex(4)}"


def step_of(name: str) -> tuple[int, int]:
    """Step and number of the attempt in the name of a checkpoint's directory.

    >>> step_of("step-00001234"), step_of("step-00001234.2")
    ((1234, 1), (1234, 2))
    """
    match = _STEP.fullmatch(name)
    assert match is not None, name
    return int(match[1]), int(match[2] or 1)


def step_of_path(path: Path) -> int:
    """The step in the path of a checkpoint, or of one that waits aside for its successor."""
    match = _ASIDE.fullmatch(path.name)
    return step_of(match[1] if match else path.name)[0]


def checkpoints(folder: str | Path, files: Files | None = None) -> list[Path]:
    """Whole checkpoints in a run folder or its `checkpoints/`, oldest step first.

    A process that died between the two renames of replacing a step's checkpoint leaves the old one aside; it counts.
    """
    with reading(folder):
        found = _by_step(*home(folder, files))
    return [found[step] for step in sorted(found)]


def _by_step(folder: Path, files: Files) -> dict[int, Path]:
    found: dict[int, Path] = {}
    names = files.names(folder)
    for name in names:
        if (m := _ASIDE.fullmatch(name)) and m.group(2) == "old" and NAME in files.names(folder / name):
            found[int(m.group(1)[5:])] = folder / name
    for name in sorted((n for n in names if _STEP.fullmatch(n)), key=step_of):
        if NAME in files.names(folder / name):
            found[step_of(name)[0]] = folder / name
    return found


def at_step(folder: str | Path, step: int, files: Files | None = None) -> Path | None:
    """The whole checkpoint of a step; None where there is none."""
    with reading(folder):
        return _by_step(*home(folder, files)).get(step)


def latest(folder: str | Path, files: Files | None = None) -> Path | None:
    """The checkpoint of the highest step in a run folder (or its `checkpoints/`); None where there is none."""
    return next(reversed(checkpoints(folder, files)), None)


def find(path: str | Path, files: Files | None = None) -> Path:
    """The checkpoint a person means: its directory, a run folder's newest, or RUN/best, RUN/latest, RUN/step-00001234.

    Raises CheckpointError.
    """
    with reading(path):
        return _find(path, files)


def _find(path: str | Path, files: Files | None) -> Path:
    given = files
    path, files = located(path, files)
    if NAME in files.names(path):
        return path
    if _STEP.fullmatch(path.name) and files.is_directory(path):
        raise CheckpointError(f"{path / NAME}: missing, so this is no checkpoint. {ADVICE}")
    if (named := _named(path, given)) is not None:
        return named
    newest = latest(path, given)
    if newest is None and path.name == BEST and latest(path.parent, given) is not None:
        raise CheckpointError(
            f"{path}: no checkpoint of this run was marked the best: its job does not set train.checkpoint.best. The "
            f"newest is {path.parent} or {path.parent / LATEST}"
        )
    if newest is None:
        what = "it holds no checkpoint" if files.is_directory(path) else "there is no such directory"
        raise CheckpointError(
            f"{path}: {what}; give a checkpoint (…/checkpoints/step-00001234) or a run folder that has one"
        )
    return newest


def _named(path: Path, files: Files | None) -> Path | None:
    """The checkpoint of RUN/best, RUN/latest or RUN/step-00001234; None for another name, or where RUN has none."""
    run = path.parent
    if path.name == LATEST:
        return latest(run, files)
    if path.name == BEST:
        # The file `best` of a folder of checkpoints, or that of the run folder around it.
        return best(run, files)
    match = _STEP.fullmatch(path.name)
    return at_step(run, int(match[1]), files) if match else None


def home(folder: str | Path, files: Files | None = None) -> tuple[Path, Files]:
    """The folder of checkpoints of a run folder, or itself, and the operations for it. Raises CheckpointError."""
    folder, files = located(folder, files)
    inner = folder / CHECKPOINTS
    with reading(inner):
        if files.is_directory(inner):
            return inner, files
        if isinstance(files, ObjectFiles) or CHECKPOINTS not in files.names(folder):
            return folder, files
        try:
            text = bytes(read_file(inner, files)[:_PLACE_BYTES]).decode().strip()
        except UnicodeDecodeError as e:
            raise CheckpointError(f"cannot read {inner}, which says where the checkpoints are: {e}") from e
    return located(text)


def kept_at(run: str | Path, under: str | None) -> Path:
    """Where the checkpoints of a run are, or will be: as its folder says, else in a folder of the run's name `under`
    another one, else in the run folder."""
    run = Path(run)
    found, _ = home(run)
    if found != run:
        return found
    return run / CHECKPOINTS if under is None else place(under).joinpath(run.absolute().name)


def keep_at(run: str | Path, where: Path) -> None:
    """Has a run folder say where its checkpoints are, where that is elsewhere. Raises CheckpointError."""
    run = Path(run)
    if where == run / CHECKPOINTS or home(run)[0] == where:
        return
    where = where.absolute() if type(where) is type(run) else where
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_small(run / CHECKPOINTS, f"{where}\n".encode())
    except OSError as e:
        raise CheckpointError(f"cannot write {run / CHECKPOINTS}: {e.strerror}") from e


def mark_best(checkpoint: str | Path, files: Files | None = None) -> None:
    """Names a checkpoint the best of its folder; retention keeps it. Raises CheckpointError."""
    checkpoint, files = located(checkpoint, files)
    try:
        _write_small(checkpoint.parent / BEST, f"{checkpoint.name}\n".encode(), files)
    except OSError as e:
        raise CheckpointError(f"cannot write {checkpoint.parent / BEST}: {e.strerror}") from e


def _write_small(path: Path, data: bytes, files: Files) -> None:
    """A small file, whole or not at all. An object is that anyway, and takes the place of the one before."""
    if not isinstance(files, ObjectFiles):
        write_small(path, data, files)
        return
    file = files.create(path)
    try:
        file.write(memoryview(data))
        file.sync()
    finally:
        file.close()


def best(folder: str | Path, files: Files | None = None) -> Path | None:
    """The checkpoint named best in a run folder (or its `checkpoints/`); None where none was named.

    Raises CheckpointError when the one named is not there.
    """
    with reading(folder):
        folder, files = home(folder, files)
        if BEST not in files.names(folder):
            return None
        name = bytes(read_file(folder / BEST, files)).decode(errors="replace").strip()
        match = _STEP.fullmatch(name)
        # By step, not by name: its directory may be the one that waits aside for its successor.
        found = _by_step(folder, files).get(int(match.group(1))) if match else None
    if found is None:
        raise CheckpointError(f"{folder / BEST} names '{name[:80]}', which is not a checkpoint in that folder")
    return found


def retain(folder: str | Path, keep: int, files: Files | None = None) -> list[Path]:
    """Removes all but the newest `keep` checkpoints and the best; returns what was removed. Raises CheckpointError."""
    folder, files = home(folder, files)
    try:
        clean(folder, files)
        steps = [p for p in checkpoints(folder, files) if _STEP.fullmatch(p.name)]
        named = read_file(folder / BEST, files).decode(errors="replace").strip() if BEST in files.names(folder) else ""
        kept = step_of(named)[0] if _STEP.fullmatch(named) else None
        gone = [p for p in steps[: max(0, len(steps) - keep)] if step_of(p.name)[0] != kept]
        for path in gone:
            discard(path, files)
    except OSError as e:
        raise CheckpointError(f"cannot remove old checkpoints in {folder}: {e.strerror} ({e.filename})") from e
    return gone


def discard(path: Path, files: Files = LOCAL) -> None:
    """Removes a checkpoint: first its name, durably, then its files, so that no reader meets half of one. Of objects
    the manifest goes first: without it the others are no checkpoint."""
    if isinstance(files, ObjectFiles):
        files.remove_file(path / NAME)
        remove_tree(path, files)
        return
    match = _ASIDE.fullmatch(path.name)
    target = path.with_name(aside(match.group(1) if match else path.name, "tmp"))
    files.rename(path, target)
    files.sync_directory(path.parent)
    remove_tree(target, files)


def clean(folder: Path, files: Files = LOCAL) -> None:
    """Puts right what a process that died has left: drafts go, an old checkpoint whose successor never took the name
    gets it back. Of objects go those that no manifest lists, and those that a later one of the same step stands for.
    Raises OSError."""
    names = files.names(folder)
    if isinstance(files, ObjectFiles):
        whole = _by_step(folder, files).values()
        for name in names:
            if _STEP.fullmatch(name) and folder / name not in whole:
                discard(folder / name, files)
        return
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


def free_name(folder: Path, step: int, files: Files) -> Path:
    """Where objects of a step's checkpoint can be put without touching any that are there."""
    taken = [step_of(n)[1] for n in files.names(folder) if _STEP.fullmatch(n) and step_of(n)[0] == step]
    return folder / (step_name(step) + (f".{max(taken) + 1}" if taken else ""))
