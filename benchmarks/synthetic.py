"""Synthetic clicks in the shape of Criteo's: 26 single-valued features, 13 numbers, a label, the true probability.

Ranks of each feature are zipf-distributed over its vocabulary; every id and every number has a hidden weight, the
label is drawn from the logistic function of their sum. So the best reachable AUC is known (the Bayes AUC), and a
model that has learned nothing scores 0.5. Everything follows from (seed, split, block) alone: a file can be made
again, in any order, with bounded memory.

Files: Parquet as `pyarrow.parquet.write_table` writes it by default (dictionary pages, snappy) with row groups of
131,072 rows and 1,048,576 rows a file, because that is what a user's own pipeline is likely to have left on disk.
Columns: `label` int8, `I1` to `I13` float32, `C1` to `C26` int64 (64-bit mixes, so half of them are negative).
Beside them, for programs that cannot read Parquet or take hashed ids, the same rows as .npy arrays in which every id
has been replaced by its row number (its place among the sorted ids of its vocabulary, so hot rows lie scattered).

F features, V vocabulary of a feature, B rows of a block.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

VOCABULARIES = (
    *(2_000_000, 1_500_000, 1_000_000, 700_000, 500_000, 350_000, 250_000, 180_000, 120_000, 90_000, 60_000, 40_000),
    *(30_000, 20_000, 12_000, 8_000, 5_000, 3_000, 2_000, 1_200, 800, 500, 300, 200, 150, 100),
)
NUMBERS = 13
ZIPF_EXPONENT = 1.05
ID_WEIGHT_STD, NUMBER_WEIGHT_STD, BIAS = 0.30, 0.12, -1.15
BLOCK_ROWS = 131_072
FILE_ROWS = 8 * BLOCK_ROWS

CATEGORICAL = tuple(f"C{i + 1}" for i in range(len(VOCABULARIES)))
NUMERIC = tuple(f"I{i + 1}" for i in range(NUMBERS))


@dataclass(frozen=True, slots=True)
class Block:
    """B rows in a row."""

    ranks: NDArray[np.int64]
    """[F, B], 0 for the most frequent id."""
    numbers: NDArray[np.float32]
    """[B, 13]"""
    label: NDArray[np.int8]
    """[B]"""
    probability: NDArray[np.float32]
    """[B]: of the label being 1; nothing can know more."""


class Clicks:
    """The hidden model, made from `seed`. `divide` shrinks the vocabularies, for smoke runs."""

    def __init__(self, *, seed: int = 7, divide: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.vocabularies = tuple(max(2, v // divide) for v in VOCABULARIES)
        self._id_weights = [(rng.standard_normal(v) * ID_WEIGHT_STD).astype(np.float32) for v in self.vocabularies]
        self._number_weights = (rng.standard_normal(NUMBERS) * NUMBER_WEIGHT_STD).astype(np.float32)

    def ids(self, feature: int, ranks: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The 64-bit id of each rank: a bijective mix of (feature, rank), so ids never collide."""
        x = (np.uint64(feature + 1) << np.uint64(48)) + ranks.astype(np.uint64)
        with np.errstate(over="ignore"):
            for multiplier in (0xD6E8FEB86659FD93, 0xD6E8FEB86659FD93):
                x = (x ^ (x >> np.uint64(32))) * np.uint64(multiplier)
        return x ^ (x >> np.uint64(32))

    def row_numbers(self, feature: int) -> NDArray[np.int64]:
        """[V]: rank → place of its id among the sorted ids."""
        order = np.argsort(self.ids(feature, np.arange(self.vocabularies[feature])))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return place

    def block(self, split: str, number: int, rows: int = BLOCK_ROWS) -> Block:
        """Block `number` of "train" or "test"."""
        rng = np.random.default_rng([self.seed, {"train": 1, "test": 2}[split], number])
        ranks = np.empty((len(self.vocabularies), rows), np.int64)
        logit = np.full(rows, BIAS, np.float32)
        for f, size in enumerate(self.vocabularies):
            ranks[f] = _zipf(rng, rows, size)
            logit += self._id_weights[f][ranks[f]]
        numbers = rng.standard_normal((rows, NUMBERS), dtype=np.float32)
        logit += numbers @ self._number_weights
        probability = (1.0 / (1.0 + np.exp(-logit))).astype(np.float32)
        label = (rng.random(rows, dtype=np.float32) < probability).astype(np.int8)
        return Block(ranks, numbers, label, probability)


def _zipf(rng: np.random.Generator, rows: int, size: int) -> NDArray[np.int64]:
    """Ranks 0 to size - 1 with P(k) ∝ (k + 1)^-a, by inverting the distribution function of its continuous form."""
    power = 1.0 - ZIPF_EXPONENT
    inverse = (rng.random(rows) * ((size + 1.0) ** power - 1.0) + 1.0) ** (1.0 / power)
    return np.clip(inverse.astype(np.int64) - 1, 0, size - 1)


def auc(label: NDArray[np.int8], score: NDArray[np.float32]) -> float:
    """Area under the ROC curve, exact, equal scores counting half."""
    _, group, count = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    rank = (last - (count - 1) / 2.0)[group]
    ones = int(np.count_nonzero(label))
    zeros = len(label) - ones
    return float((rank[label == 1].sum() - ones * (ones + 1) / 2.0) / (ones * zeros))


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a data set is made from; equal sizes share one folder."""

    train_rows: int
    test_rows: int
    seed: int = 7
    divide: int = 1
    compression: str = "snappy"
    version: int = 1


@dataclass(frozen=True, slots=True)
class Dataset:
    """A generated folder."""

    folder: Path
    train: tuple[Path, ...]
    test: tuple[Path, ...]
    arrays: Path
    """{train,test}_{rows,numbers,label}.npy, test_probability.npy, and vocabularies.json."""
    bayes_auc: float
    bytes_on_disk: int


def default_data_dir() -> Path:
    """`~/.cache/satrap-benchmarks`, or under XDG_CACHE_HOME where that is set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "satrap-benchmarks"


def ensure(data_dir: Path, sizes: Sizes) -> Dataset:
    """The data set of these sizes, made in a folder of its own when it is not there yet.

    It is written aside and renamed, so an interrupted run leaves nothing that looks complete.
    """
    key = hashlib.sha256(json.dumps(asdict(sizes), sort_keys=True).encode()).hexdigest()[:12]
    folder = data_dir / f"clicks-{sizes.train_rows}-{key}"
    if not folder.exists():
        aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "arrays").mkdir(parents=True)
        _write(aside, sizes)
        aside.rename(folder)
    facts = json.loads((folder / "facts.json").read_text())
    train, test = (tuple(sorted(folder.glob(f"{split}-*.parquet"))) for split in ("train", "test"))
    size = sum(p.stat().st_size for p in train)
    return Dataset(folder, train, test, folder / "arrays", facts["bayes_auc"], size)


def _write(folder: Path, sizes: Sizes) -> None:
    clicks = Clicks(seed=sizes.seed, divide=sizes.divide)
    places = [clicks.row_numbers(f) for f in range(len(clicks.vocabularies))]
    (folder / "arrays" / "vocabularies.json").write_text(json.dumps(clicks.vocabularies))
    for split, total in (("train", sizes.train_rows), ("test", sizes.test_rows)):
        rows = np.empty((len(places), total), np.int64)
        numbers = np.empty((total, NUMBERS), np.float32)
        label = np.empty(total, np.int8)
        probability = np.empty(total, np.float32)
        for start in range(0, total, FILE_ROWS):
            end = min(start + FILE_ROWS, total)
            path = folder / f"{split}-{start // FILE_ROWS:03d}.parquet"
            with pq.ParquetWriter(path, _schema(), compression=sizes.compression) as writer:
                for at in range(start, end, BLOCK_ROWS):
                    block = clicks.block(split, at // BLOCK_ROWS, min(BLOCK_ROWS, end - at))
                    to = slice(at, at + len(block.label))
                    for f, place in enumerate(places):
                        rows[f, to] = place[block.ranks[f]]
                    numbers[to], label[to], probability[to] = block.numbers, block.label, block.probability
                    writer.write_table(_table(clicks, block), row_group_size=BLOCK_ROWS)
        for name, array in (("rows", rows), ("numbers", numbers), ("label", label)):
            np.save(folder / "arrays" / f"{split}_{name}.npy", array)
    np.save(folder / "arrays" / "test_probability.npy", probability)
    (folder / "facts.json").write_text(json.dumps({**asdict(sizes), "bayes_auc": auc(label, probability)}))


def _schema() -> pa.Schema:
    return pa.schema(
        [("label", pa.int8())] + [(n, pa.float32()) for n in NUMERIC] + [(n, pa.int64()) for n in CATEGORICAL]
    )


def _table(clicks: Clicks, block: Block) -> pa.Table:
    columns: list[pa.Array] = [pa.array(block.label)]
    columns += [pa.array(np.ascontiguousarray(block.numbers[:, i])) for i in range(NUMBERS)]
    columns += [pa.array(clicks.ids(f, block.ranks[f]).view(np.int64)) for f in range(len(clicks.vocabularies))]
    return pa.table(columns, schema=_schema())
