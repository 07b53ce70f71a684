"""`satrap train`: from files or a job to a trained, evaluated, saved model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from satrap.cli import show
from satrap.cli.failures import EXIT_INTERRUPTED, UsageError, refuse_without_folder
from satrap.cli.options import Debug, Quiet, examples
from satrap.cli.sources import check_resumed_job, find_run, sort_words
from satrap.schema import Job, load_job, override, save_job

if TYPE_CHECKING:
    from satrap.train import Result

NAME = "train"
EXAMPLES = examples(
    "satrap train clicks.parquet --label click",
    "satrap train 'logs/*.csv' --label income --positive '>50K' --exclude id --save-job job.yaml --dry-run",
    "satrap train job.yaml train.staleness=0 tables.user.dim=32",
    "satrap train job.yaml default_format=int8 train.embedding_optimizer.kind=rowwise_adagrad",
    "satrap train job.yaml --profile",
    "satrap train job.yaml --servers 2 --workers 2",
    "satrap train job.yaml --servers 4 --workers 8 --address 10.0.0.1:6379 --keys /etc/satrap/keys",
    "satrap train --resume runs/clicks-20260101-120000",
)

INFERENCE = "From data files"
PROCESSES = "In several processes"


def command(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="JOB.YAML | DATA... [KEY=VALUE]...",
            help="A job file, or data files to infer the job from; then settings to change, as dotted paths.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with this run from the exact row where it stopped; or the URL of its checkpoints.",
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of this run; default runs/<job>-<time>.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; short for train.epochs=.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column of 0 and 1. Repeat for several tasks.", rich_help_panel=INFERENCE),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(metavar="VALUE", help="The label is this value or not, like '>50K'.", rich_help_panel=INFERENCE),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA", help="Files to test the finished model on.", rich_help_panel=INFERENCE),
    ] = None,
    valid: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION|DATA", help="Rows to hold out, or a file of them; default 0.1.", rich_help_panel=INFERENCE
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Leave this column out. Repeatable.", rich_help_panel=INFERENCE),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of sample weights.", rich_help_panel=INFERENCE),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="parquet, csv, tsv or criteo, where the file names do not say.",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    save_job: Annotated[
        Path | None,
        typer.Option(metavar="JOB.YAML", help="Write the inferred job to this file.", rich_help_panel=INFERENCE),
    ] = None,
    servers: Annotated[
        int | None,
        typer.Option(metavar="S", min=1, help="Parameter servers, a process each.", rich_help_panel=PROCESSES),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="W", min=1, help="Workers that train together.", rich_help_panel=PROCESSES),
    ] = None,
    embedding_workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Processes that pool rows for the workers, which then receive pooled vectors alone.",
            rich_help_panel=PROCESSES,
        ),
    ] = 0,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="A Ray cluster to run on; default: this machine alone.",
            rich_help_panel=PROCESSES,
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keys of servers and workers, from `satrap keys new`.", rich_help_panel=PROCESSES
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Several machines without keys: everyone on the network may read and change the model.",
            rich_help_panel=PROCESSES,
        ),
    ] = False,
    restarts: Annotated[
        int,
        typer.Option(
            min=0,
            help="How often to go back to the last checkpoint when a process has ended.",
            rich_help_panel=PROCESSES,
        ),
    ] = 3,
    server_deadline: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            help="How long a server may not answer before it is taken for dead and replaced.",
            rich_help_panel=PROCESSES,
        ),
    ] = 30.0,
    metrics_host: Annotated[
        str,
        typer.Option(
            metavar="HOST", help="Where every process serves its metrics to Prometheus.", rich_help_panel=PROCESSES
        ),
    ] = "127.0.0.1",
    metrics_port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65_000,
            help="The first of each machine, the next free one of its second process, and so on; default: any.",
            rich_help_panel=PROCESSES,
            show_default=False,
        ),
    ] = 0,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say at the end where the time went and what to change for more speed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the job, train nothing.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train, evaluate and save a model.

    From data files alone, the features are inferred: strings and integers become ids with an embedding, floats become
    numbers, lists become multi-valued features. From a job file, everything is as the file says.
    """
    words = sort_words(source or [])
    overrides = [*words.overrides, *([f"train.epochs={epochs}"] if epochs is not None else [])]
    inferring = {
        "label": label,
        "positive": positive,
        "test": test,
        "valid": valid,
        "exclude": exclude,
        "weight": weight,
        "format": file_format,
        "save-job": save_job,
    }
    given = [f"--{name}" for name, value in inferring.items() if value]
    if resume is not None:
        others = {"a job file": words.job_file, "data files": words.data, "--run-dir": run_dir}
        _refuse_together("--resume", [name for name, value in others.items() if value] + given)
        run_dir, before = _run_of(resume)
        job = _resumed(before, overrides)
    elif words.job_file is not None:
        _refuse_together(f"the job file {words.job_file}", given)
        job = override(load_job(words.job_file), overrides)
    else:
        job = override(_inferred(words.data, inferring, quiet=quiet), overrides)
    if save_job is not None:
        refuse_without_folder("--save-job", save_job)
        _save(job, save_job, quiet=quiet)
    if not quiet:
        show.job(job, features=not words.data)
    if dry_run:
        return
    if servers is None and workers is None and address is None:
        _refuse_alone({"--keys": keys, "--insecure": insecure, "--embedding-workers": embedding_workers})
        result, again = _train(job, run_dir, resume=resume is not None, quiet=quiet, profile=profile), ""
    else:
        result = _launch(
            job,
            servers=servers or 1,
            workers=workers or 1,
            embedding_workers=embedding_workers,
            address=address,
            keys=keys,
            insecure=insecure,
            restarts=restarts,
            server_deadline_s=server_deadline,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            run_dir=run_dir,
            resume=resume is not None,
            progress=False if quiet else None,
            profile=profile,
            debug=debug,
        )
        again = f" --servers {servers or 1} --workers {workers or 1}"
        again += f" --embedding-workers {embedding_workers}" if embedding_workers else ""
        again += f" --address {address}" if address else ""
        again += (f" --keys {keys}" if keys else "") + (" --insecure" if insecure else "")
    _show(result, again, profile=profile)
    if resume is not None and not result.samples_per_s:
        show.line(_finished_already(result, job, again))


def _run_of(resume: Path) -> tuple[Path, Job]:
    """The run folder and its job; of a run's checkpoints at a URL, a folder of its name here, and the job in them."""
    from satrap.checkpoint import RemotePath, load, place

    where = place(resume)
    if not isinstance(where, RemotePath):
        run = find_run(resume)
        return run, load_job(run / "job.yaml")
    newest = load(where)
    return Path("runs") / newest.path.parent.name, newest.job


def _resumed(before: Job, overrides: list[str]) -> Job:
    after = override(before, overrides)
    check_resumed_job(before, after)
    return after


def _inferred(data: list[str], options: Mapping[str, Any], *, quiet: bool) -> Job:
    """The job that the files themselves suggest; each decision is a line on the screen."""
    if not data:
        raise UsageError("give a job file, or data files and --label")
    if not options["label"]:
        raise UsageError(f"--label is missing: name the column of {data[0]} that holds 0 or 1")
    from satrap.data import infer_job

    inference = infer_job(
        data,
        options["label"],
        positive=options["positive"],
        valid=_valid(options["valid"]),
        test=options["test"] or (),
        format=options["format"] or "auto",
        weight=options["weight"],
        exclude=options["exclude"] or (),
    )
    if not quiet:
        show.notes(f"Inferred from {', '.join(data)}", inference.notes)
    return inference.job


def _valid(text: str | None) -> float | tuple[str, ...]:
    if text is None:
        return 0.1
    try:
        return float(text)
    except ValueError:
        return (text,)


def _refuse_together(what: str, others: list[str]) -> None:
    if others:
        raise UsageError(f"{what} already says what to train; {' and '.join(others)} cannot be given with it")


def _save(job: Job, path: Path, *, quiet: bool) -> None:
    save_job(job, path)
    if not quiet:
        show.line(f"Job written to {path}; train it again with: satrap train {path}")


def _refuse_alone(options: Mapping[str, Any]) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(f"{' and '.join(given)}: one process has no servers; give --servers and --workers with it")


def _train(job: Job, run_dir: Path | None, *, resume: bool, quiet: bool, profile: bool) -> Result:
    from satrap.train import Trainer

    trainer = Trainer(job, run_dir=run_dir, progress=False if quiet else None, profile=profile)
    return trainer.fit(resume=resume)


def _launch(job: Job, **options: Any) -> Result:
    from satrap.cli.columns import check_columns
    from satrap.launch import run
    from satrap.observe.machine import process_began_at

    return run(job, check=lambda: check_columns(job), asked_at=process_began_at(), **options)


def _finished_already(result: Result, job: Job, again: str) -> str:
    """What to say of a resumed run that had no step left, and how it goes on."""
    train, stopping = job.train, job.train.early_stopping
    more = []
    if result.stopped == "early_stopping" and stopping is not None:
        more.append(f"train.early_stopping.patience={2 * stopping.patience}")
    if result.epochs >= train.epochs:
        more.append(f"train.epochs={result.epochs + 1}")
    if train.max_steps is not None and result.steps >= train.max_steps:
        more.append(f"train.max_steps={2 * result.steps}")
    return (
        f"Finished already at epoch {result.epochs}, step {show.count(result.steps)}: nothing was left to train. "
        f"To train on: satrap train --resume {show.path(result.run_dir)} {' '.join(more)}{again}"
    )


def _show(result: Result, again: str, *, profile: bool) -> None:
    """`again`: options with which the run goes on as it was."""
    show.result(result)
    if profile:
        show.profile(result)
    if result.unsaved is not None:
        from satrap.errors import SaveError

        kept = (
            f"go on from {show.path(result.checkpoint)} with" if result.checkpoint else "nothing is saved; begin with"
        )
        raise SaveError(
            f"the model as it ended is not saved: {result.unsaved}. Put that right, and {kept}: "
            f"satrap train --resume {show.path(result.run_dir)}{again}"
        )
    if result.stopped == "interrupted":
        run = show.path(result.run_dir)
        saved = "the checkpoint is saved. Go on" if result.checkpoint else "nothing was trained, nothing saved. Begin"
        show.line(f"Interrupted; {saved} with: satrap train --resume {run}{again}")
        raise typer.Exit(EXIT_INTERRUPTED)
