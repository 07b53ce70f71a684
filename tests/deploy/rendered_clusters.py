"""The three clusters that the tests render. `python tests/deploy/rendered_clusters.py` writes the golden files anew."""

from __future__ import annotations

from pathlib import Path

from satrap.deploy import gcloud_script, render
from satrap.plan import Cluster, Prices, load_cluster, load_prices
from satrap.schema import Categorical, Data, Job, Label, Numeric, RowWiseAdagrad, Table, Train

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
CLUSTERS = ("kind", "gke-small", "persia")


def cluster(name: str) -> Cluster:
    """A cluster of the repository."""
    return load_cluster(REPOSITORY / "deploy" / "clusters" / f"{name}.yaml")


def prices() -> Prices:
    """Round figures: the golden files do not change with the price list that users edit."""
    return load_prices(Path(__file__).parent / "prices.yaml")


def job(name: str) -> Job:
    """The job of a cluster: its data on the volume of the laptop, or in a bucket."""
    root = "/runs/data" if name == "kind" else "gs://clicks"
    return Job(
        name="clicks",
        data=Data(train=(f"{root}/train",), test=(f"{root}/test",), label=(Label(column="click"),)),
        features=(Categorical(name="user"), Categorical(name="item"), Numeric(name="price", transform="log")),
        tables=(Table(name="user", dim=128, optimizer=RowWiseAdagrad(lr=0.02)),),
        default_dim=128,
        train=Train(batch_size=65_536, staleness=8),
    )


def rendered(name: str) -> dict[str, str]:
    """All files of a cluster but the job itself, whose settings are golden elsewhere; the scripts for Google Cloud
    included."""
    c, listed = cluster(name), prices()
    files = render(job(name), c, listed, embedding_workers=True)
    del files["10-job.yaml"]
    if c.google is not None:
        files["up.sh"] = gcloud_script(job(name), c, listed)
        files["down.sh"] = gcloud_script(job(name), c, listed, down=True)
    return files


def main() -> None:
    """Writes them."""
    for name in CLUSTERS:
        folder = GOLDEN / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for file, text in rendered(name).items():
            (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
