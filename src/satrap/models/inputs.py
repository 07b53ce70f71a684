"""What a model is given, worked out from the job alone."""

from __future__ import annotations

from dataclasses import dataclass

from satrap.schema import Job, Sequence


@dataclass(frozen=True, slots=True)
class Inputs:
    """Widths of everything a model of a job sees, in the order in which `Named` holds it.

    >>> from satrap.schema import Categorical, Data, Label, Numeric
    >>> job = Job(data=Data(train=("a.parquet",), label=(Label(column="y"),)),
    ...           features=(Numeric(name="age", indicator=True), Categorical(name="city")), default_dim=4)
    >>> Inputs.of(job)
    Inputs(numeric={'age': 2}, pooled={'city': 4}, sequences={}, labels=1)
    """

    numeric: dict[str, int]
    """Columns of each number: its width, and one more where it has an indicator."""
    pooled: dict[str, int]
    """D of each pooled feature."""
    sequences: dict[str, int]
    """D of each sequence feature."""
    labels: int
    """T, the logits a sample."""

    @classmethod
    def of(cls, job: Job) -> Inputs:
        """The inputs of a job's model."""
        dims = {t.name: t.dim for t in job.resolved_tables()}
        ids = {f.name: dims[job.table_of(f)] for f in job.id_features}
        ordered = {f.name for f in job.id_features if isinstance(f, Sequence)}
        return cls(
            numeric={f.name: f.width + int(f.indicator) for f in job.numeric_features},
            pooled={k: d for k, d in ids.items() if k not in ordered},
            sequences={k: d for k, d in ids.items() if k in ordered},
            labels=len(job.data.label),
        )

    @property
    def numbers(self) -> int:
        """n, columns of all numbers."""
        return sum(self.numeric.values())

    @property
    def dims(self) -> tuple[int, ...]:
        """D of every vector of ids, as `Named.pooled` orders them: pooled features, then the means of sequences."""
        return (*self.pooled.values(), *self.sequences.values())
