"""`satrap import`: a run that begins with rows from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from satrap.cli import show
from satrap.cli.failures import UsageError
from satrap.cli.options import Debug, Quiet, examples
from satrap.errors import CheckpointError
from satrap.schema import DENSE_TABLE, Job, load_job

if TYPE_CHECKING:
    from satrap.checkpoint.foreign import RowSource

NAME = "import"
EXAMPLES = examples(
    "satrap import job.yaml rows --run-dir runs/again",
    "satrap import job.yaml model.safetensors",
    "satrap import job.yaml user=model.pt:ebc.embedding_bags.user.weight item=items.parquet",
)
TENSORS = (".safetensors", ".pt", ".pth", ".bin")


def command(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The job to train.", show_default=False)],
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="The folder of an export; a state dict (.safetensors, .pt) with a tensor for each table; or "
            "TABLE=FILE.parquet, TABLE=FILE.pt:KEY.",
            show_default=False,
        ),
    ],
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the new run; default runs/<job>-<time>.")
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The dense weights, safetensors; default: an export's where they fit, else fresh."
        ),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a run whose tables begin with rows from elsewhere.

    From `satrap export`, from the state dict of nn.EmbeddingBag or TorchRec (row i is id i), or from Parquet files with
    the columns id and values. Nothing in these files is run. Go on with `satrap train --resume`, or evaluate at once.
    """
    from satrap.train.importing import import_rows

    job = load_job(job_file)
    rows, exports = sources(job, source)
    path, notes = import_rows(job, rows, run_dir=run_dir, dense=_dense(dense, exports), fresh_dense=dense is None)
    if quiet:
        return
    for note in notes:
        show.line(note)
    run = show.path(path.parent.parent) if run_dir is None and "://" not in str(path) else run_dir or path
    show.line(f"Saved {show.path(path)}; train it with: satrap train --resume {run}")


def sources(job: Job, words: Sequence[str]) -> tuple[dict[str, RowSource], list[Any]]:
    """Table → where its rows come from, and the exports among the words. Raises UsageError and CheckpointError."""
    from satrap.checkpoint.export import Exported
    from satrap.checkpoint.foreign import ExportedRows, ParquetRows, TensorRows, keys_of, shape_of, state_dict

    tables = [t.name for t in job.resolved_tables() if t.name != DENSE_TABLE]
    found: dict[str, RowSource] = {}
    exports: list[Exported] = []

    def add(table: str, source: RowSource) -> None:
        if table in found:
            raise UsageError(f"table '{table}' is given twice: by {found[table].name} and by {source.name}")
        found[table] = source

    for word in words:
        table, equals, rest = word.partition("=")
        if equals and table in tables:
            file, _, key = rest.partition(":")
            if file.endswith(".parquet"):
                add(table, ParquetRows(file))
                continue
            tensors = state_dict(file)
            keys = [key] if key else keys_of(table, tensors)
            add(table, TensorRows(_one(tensors, keys, table, file), f"{file}: {keys[0] if keys else ''}"))
        elif word.endswith(TENSORS):
            tensors = state_dict(word)
            by_table = {t: keys_of(t, tensors) for t in tables}
            if len(tables) == 1 and not by_table[tables[0]]:
                by_table[tables[0]] = [k for k, t in tensors.items() if len(shape_of(t)) == 2]
            if not any(by_table.values()):
                raise CheckpointError(
                    f"{word}: no tensor is named after a table of the job ({', '.join(tables)}); it has "
                    f"{', '.join(sorted(tensors)[:8])}. Say which is which: TABLE={word}:KEY"
                )
            for table, keys in by_table.items():
                if keys:
                    add(table, TensorRows(_one(tensors, keys, table, word), f"{word}: {keys[0]}"))
        else:
            exported = Exported.open(word)
            exports.append(exported)
            for name in exported.tables():
                if name in tables:
                    add(name, ExportedRows(exported, name))
                else:
                    raise CheckpointError(f"{word}: table '{name}' is none of the job's: {', '.join(tables)}")
    return found, exports


def _one(tensors: dict[str, Any], keys: Sequence[str], table: str, file: str) -> Any:
    from satrap.errors import did_you_mean

    if len(keys) == 1 and keys[0] in tensors:
        return tensors[keys[0]]
    if len(keys) == 1:
        raise CheckpointError(f"{file}: it has no tensor '{keys[0]}'; {did_you_mean(keys[0], tensors)}")
    what = f"several may be of table '{table}': {', '.join(keys)}" if keys else f"none is named after table '{table}'"
    raise CheckpointError(f"{file}: {what}. Say which: {table}={file}:KEY")


def _dense(path: Path | None, exports: Sequence[Any]) -> Any:
    from satrap.checkpoint.tensors import decode

    if path is not None:
        try:
            return decode(path.read_bytes(), str(path))
        except OSError as e:
            raise CheckpointError(f"cannot read {path}: {e.strerror}") from e
    return decode(exports[0].dense(), str(exports[0].path)) if len(exports) == 1 else None
