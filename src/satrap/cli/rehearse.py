"""`satrap rehearse`: a cluster in small on this machine, and what happens when machines of it are lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from satrap.cli import show
from satrap.cli.deploy import ClusterFile, JobFile, Overrides, PriceFile
from satrap.cli.options import Debug, Quiet, examples
from satrap.schema import load_job, override

if TYPE_CHECKING:
    from satrap.rehearse import Report

NAME = "rehearse"
EXAMPLES = examples(
    "satrap rehearse job.yaml --cluster gke.yaml --prices prices.yaml",
    "satrap rehearse job.yaml --cluster gke.yaml --fail server@step:200 --fail worker@60s --compare",
)
SCALE = "In small"


def command(
    job_file: JobFile,
    overrides: Overrides = None,
    cluster: ClusterFile = Path("cluster.yaml"),
    prices: PriceFile = None,
    fail: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHO@WHEN",
            help="A machine to lose: server@step:200, worker.1@60s (after the first step), reader@step:50. Repeatable.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run the job before, with nothing that happens to it.")
    ] = False,
    server_nodes: Annotated[int, typer.Option(metavar="N", min=1, help="At most.", rich_help_panel=SCALE)] = 3,
    worker_nodes: Annotated[int, typer.Option(metavar="N", min=1, help="At most.", rich_help_panel=SCALE)] = 2,
    reader_nodes: Annotated[int, typer.Option(metavar="N", min=1, help="At most.", rich_help_panel=SCALE)] = 1,
    links: Annotated[
        float, typer.Option(metavar="SHARE", min=1e-6, help="Of the speed of the links.", rich_help_panel=SCALE)
    ] = 0.01,
    replace_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.0, help="Until another machine is there for a lost one.", rich_help_panel=SCALE
        ),
    ] = 15.0,
    replace: Annotated[bool, typer.Option(help="Whether another machine comes at all.", rich_help_panel=SCALE)] = True,
    loopback: Annotated[
        bool,
        typer.Option("--loopback", help="No network namespaces, though they be allowed here.", rich_help_panel=SCALE),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new folder for runs and logs; default runs/rehearsal-<job>-<time>."),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a job on its cluster in small, on this machine: Ray nodes in network namespaces, the same rules of placement,
    slower links; lose machines by plan, and see that the job goes on and ends with the same figures.

    Namespaces need Linux and root; without them the nodes are on loopback, and it says so. All but the folder is
    removed at the end, on Ctrl-C too. Exit code 1 where the run fails, or a failure that was planned did not come.
    """
    from satrap.errors import JobError
    from satrap.plan import load_cluster, load_prices
    from satrap.rehearse import Options, failure_of, rehearse

    job = override(load_job(job_file), overrides or [])
    listed = None if prices is None else load_prices(prices)
    failures = [failure_of(text) for text in fail or []]
    folder = (out or Path("runs") / f"rehearsal-{job.name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    if folder.exists():
        raise JobError(f"{folder} is there already: give a new folder with --out")
    options = Options(
        most={"servers": server_nodes, "workers": worker_nodes, "readers": reader_nodes},
        link_share=links,
        replace_after_s=replace_after if replace else None,
        compare=compare,
        loopback=loopback,
    )
    with _log(folder, quiet=quiet) as say, _signals():
        report = rehearse(job, load_cluster(cluster), listed, failures, folder, say, options)
        say("\n".join(_summary(report)))
    if report.missed:
        raise typer.Exit(1)


class _Log:
    """Lines with the seconds since the command, on the screen and in `rehearsal.log`."""

    def __init__(self, folder: Path, *, quiet: bool) -> None:
        self._folder, self._quiet, self._begun = folder, quiet, time.monotonic()
        self._file: TextIO | None = None

    def __call__(self, text: str) -> None:
        if self._file is None and self._folder.is_dir():
            self._file = (self._folder / "rehearsal.log").open("w", encoding="utf-8")
        stamp = f"{time.monotonic() - self._begun:6.1f} s  "
        for i, line in enumerate(text.splitlines() or [""]):
            line = (stamp if i == 0 else " " * len(stamp)) + line
            if not self._quiet:
                show.line(line)
            if self._file is not None:
                print(line, file=self._file, flush=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextmanager
def _log(folder: Path, *, quiet: bool) -> Iterator[_Log]:
    log = _Log(folder, quiet=quiet)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does: what it has made is removed."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(n, interrupt) for n in numbers]
    try:
        yield
    finally:
        for n, handler in zip(numbers, before, strict=True):
            signal.signal(n, handler)


def _summary(report: Report) -> list[str]:
    out, before = report.outcome, report.undisturbed
    lines = ["", "what happened"] if out.lost else [""]
    for x in out.lost:
        took = "never back" if x.back_s is None else f"back after {x.back_s:.1f} s"
        lines.append(f"  {x.failure.node} lost at step {x.step:,}: {took}; {x.how}")
    lines += [f"  {f.node} was to be lost at {f.when}: the run had ended" for f in report.missed]
    lines.append("what it came to")
    for name, one in (("undisturbed", before), ("with failures" if out.lost else "the run", out)):
        if one is not None and one.end is not None:
            auc = "-" if one.auc is None else f"{one.auc:.6f}"
            lines.append(
                f"  {name:<14} AUC {auc}, {one.end['steps']:,} steps, {one.end['seconds']:.0f} s in its last life"
            )
            told = ", ".join(f"{k} {v:,}" for k, v in one.end["gradients"].items())
            lines.append(f"  {'':<14} ledger of gradients: {told}")
    if before is not None and before.digest is not None:
        same = "the same to the bit" if before.digest == out.digest else "not the same to the bit"
        lines.append(f"  the two models are {same}")
    return lines
