"""`satrap evaluate`: how good a saved model is on other data."""

from __future__ import annotations

from satrap.cli import show
from satrap.cli.options import AsJson, Checkpoint, DataPaths, Debug, examples
from satrap.cli.sources import find_checkpoint

NAME = "evaluate"
EXAMPLES = examples(
    "satrap evaluate runs/clicks-20260101-120000 march.parquet",
    "satrap evaluate runs/clicks-20260101-120000/checkpoints/step-00001234 'march/*.parquet' --json",
)


def command(checkpoint: Checkpoint, data: DataPaths, as_json: AsJson = False, debug: Debug = False) -> None:
    """Measure a saved model: AUC, log loss, normalized entropy, calibration.

    The data needs the label and the features' columns. Rows of unknown ids read as their initial values; nothing is
    created or changed.
    """
    from satrap.train import Trainer

    path = find_checkpoint(checkpoint)
    trainer = Trainer.from_checkpoint(path)
    evaluation = trainer.evaluate(data)
    if as_json:
        show.as_json({"checkpoint": str(path), "data": data, **evaluation.figures()})
    else:
        show.evaluation(evaluation, title=f"{path}")
