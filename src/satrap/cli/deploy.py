"""`satrap deploy`: from a job and a cluster file to manifests and to the commands that make the cluster."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from satrap.cli import show, train
from satrap.cli.options import Debug, Quiet, examples
from satrap.schema import load_job, override

NAME = "deploy"
RENDER_EXAMPLES = examples(
    "satrap deploy render job.yaml --cluster gke.yaml --prices prices.yaml --out deploy/",
    "kubectl apply -f deploy/",
)
GCLOUD_EXAMPLES = examples(
    "satrap deploy gcloud job.yaml --cluster gke.yaml --prices prices.yaml > up.sh",
    "satrap deploy gcloud job.yaml --cluster gke.yaml --prices prices.yaml --down > down.sh",
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The job.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.", show_default=False)
]
ClusterFile = Annotated[Path, typer.Option(metavar="FILE", help="The machines: see docs/capacity.md.")]
PriceFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Kinds of machines and their prices.", show_default=False)
]


def render_command(
    job_file: JobFile,
    overrides: Overrides = None,
    cluster: ClusterFile = Path("cluster.yaml"),
    prices: PriceFile = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")] = Path("deploy"),
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the Kubernetes manifests of a job: a RayJob with its groups of machines, storage, network rules, budgets.

    The same files give the same manifests. Nothing is applied, and no key is written: a Secret is only named.
    """
    from satrap.deploy import render
    from satrap.plan import load_cluster, load_prices

    job = override(load_job(job_file), overrides or [])
    listed = None if prices is None else load_prices(prices)
    files = render(job, load_cluster(cluster), listed, embedding_workers=embedding_workers_are_built())
    out.mkdir(parents=True, exist_ok=True)
    stale = sorted(p.name for p in out.glob("*.yaml") if p.name not in files and _ours(p))
    for name in stale:
        (out / name).unlink()
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    if not quiet:
        for name in files:
            show.line(f"{show.path(out / name)}")
        show.line(f"apply them with: kubectl apply -f {show.path(out)}")


def gcloud_command(
    job_file: JobFile,
    overrides: Overrides = None,
    cluster: ClusterFile = Path("cluster.yaml"),
    prices: PriceFile = None,
    down: Annotated[bool, typer.Option("--down", help="The script that removes it all again.")] = False,
    debug: Debug = False,
) -> None:
    """Print the gcloud commands that make a cluster, its node pools, bucket and permissions. Nothing is run.

    Machines and their cost an hour stand at the top.
    """
    from satrap.deploy import gcloud_script
    from satrap.plan import load_cluster, load_prices

    job = override(load_job(job_file), overrides or [])
    listed = None if prices is None else load_prices(prices)
    typer.echo(gcloud_script(job, load_cluster(cluster), listed, down=down), nl=False)


def embedding_workers_are_built() -> bool:
    """Whether this satrap's `train` can be asked for them."""
    return "embedding_workers" in inspect.signature(train.command).parameters


def _ours(path: Path) -> bool:
    """Whether an earlier rendering wrote it: then it may be removed, where this one has no such file."""
    try:
        return path.read_text(encoding="utf-8").startswith("# Rendered by `satrap deploy render`")
    except (OSError, UnicodeDecodeError):
        return False
