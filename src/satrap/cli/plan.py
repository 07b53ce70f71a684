"""`satrap plan`: machines, cost, bytes and throughput of a job on a cluster, before anything is rented."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from satrap.cli import show_plan
from satrap.cli.deploy import embedding_workers_are_built
from satrap.cli.failures import UsageError
from satrap.cli.options import AsJson, Debug, examples
from satrap.plan import (
    Constants,
    Prices,
    Workload,
    load_cluster,
    load_constants,
    load_prices,
    make_plan,
    quantity,
    target,
    workload_of,
)
from satrap.schema import load_job, override

NAME = "plan"
EXAMPLES = examples(
    "satrap plan job.yaml --cluster gke.yaml --prices prices.yaml --constants constants.yaml",
    "satrap plan job.yaml --cluster gke.yaml --rows user=2e9 --rows item=80M --constants constants.yaml",
    "satrap plan --parameters 100T --dim 128 --format int8 --cluster deploy/clusters/gke-100t.yaml "
    "--prices deploy/prices/google-us-central1.yaml --constants deploy/constants.yaml",
)


def command(
    job_file: Annotated[
        Path | None,
        typer.Argument(metavar="[JOB.YAML]", help="The job; without one, --parameters and --dim.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.", show_default=False)
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The machines: see docs/capacity.md.", show_default=False)
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kinds of machines and their prices.", show_default=False)
    ] = None,
    constants: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What `satrap calibrate` has measured.", show_default=False)
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TABLE=]N", help="Rows of a table, or of every table: user=2e9, 80M.", show_default=False
        ),
    ] = None,
    parameters: Annotated[
        str | None, typer.Option(metavar="N", help="Embedding parameters in all: 100T.", show_default=False)
    ] = None,
    materialised: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="Of the rows, those that will ever be made.")
    ] = 1.0,
    row_format: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="fp32, fp16, bf16 or int8, instead of the job's."),
    ] = None,
    dim: Annotated[int, typer.Option(min=1, help="Without a job: values a row.")] = 128,
    batch_size: Annotated[
        int | None, typer.Option(metavar="B", min=1, help="Samples of a step, of all workers together.")
    ] = None,
    ids: Annotated[float, typer.Option(metavar="N", help="Without a job: ids a sample.")] = 26.0,
    dense: Annotated[str, typer.Option(metavar="N", help="Without a job: weights of the dense network.")] = "25M",
    zipf: Annotated[float, typer.Option(help="Exponent of how often ids come.")] = 1.05,
    json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Plan a job on a cluster: memory, machines, cost, network, failures, throughput and what bounds it.

    Every formula is in docs/capacity.md. Addressable parameters are those that ids can name, materialised ones those
    whose rows exist; memory follows the second.
    """
    if cluster is None:
        raise UsageError("--cluster is missing: the machines to plan for; deploy/clusters has some to start from")
    if constants is None:
        raise UsageError("--constants is missing: measure this machine, or better one of those: satrap calibrate")
    _check_format(row_format)
    known: Constants = load_constants(constants)
    listed: Prices | None = None if prices is None else load_prices(prices)
    workload = _workload(
        job_file,
        overrides or [],
        known,
        rows or [],
        parameters,
        materialised,
        row_format,
        dim,
        batch_size,
        ids,
        dense,
        zipf,
    )
    plan = make_plan(workload, load_cluster(cluster), known, listed, pooling_built=embedding_workers_are_built())
    if json:
        show_plan.as_json(plan, known)
    else:
        show_plan.text(plan, known)


def _check_format(row_format: str | None) -> None:
    from satrap.errors import did_you_mean
    from satrap.plan.layout import VALUE_BYTES

    if row_format is not None and row_format not in VALUE_BYTES:
        raise UsageError(f"--format {row_format}: no such format; {did_you_mean(row_format, VALUE_BYTES)}")


def _workload(
    job_file: Path | None,
    overrides: list[str],
    constants: Constants,
    rows: list[str],
    parameters: str | None,
    materialised: float,
    row_format: str | None,
    dim: int,
    batch_size: int | None,
    ids: float,
    dense: str,
    zipf: float,
) -> Workload:
    total = None if parameters is None else quantity(parameters)
    if job_file is None:
        if total is None:
            raise UsageError("give a job file, or --parameters with --dim")
        return target(
            total,
            dim=dim,
            row_format=row_format or "fp32",
            ids_per_sample=ids,
            batch_size=batch_size or 65_536,
            materialised=materialised,
            zipf=zipf,
            dense_parameters=round(quantity(dense)),
        )
    if batch_size is not None:
        overrides = [*overrides, f"train.batch_size={batch_size}"]
    job = override(load_job(job_file), overrides)
    measured = constants.job if constants.job is not None and constants.job.name == job.name else None
    return workload_of(
        job,
        rows=_rows(rows),
        parameters=total,
        materialised=materialised,
        row_format=row_format,
        zipf=zipf,
        measured=measured,
    )


def _rows(texts: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        table, sep, number = text.rpartition("=")
        if table in found:
            raise UsageError(f"--rows {text}: given twice{f' for table {table}' if sep else ''}")
        found[table] = quantity(number)
    return found
