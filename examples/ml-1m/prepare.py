"""MovieLens-1M from its official files to the Parquet files that the jobs here read.

    python examples/ml-1m/prepare.py ml-1m/ data/ml-1m/       # ratings.dat, users.dat, movies.dat → three Parquet files

The files come from https://grouplens.org/datasets/movielens/1m/ and may not be passed on. A rating of 3 is dropped; 4 and
5 are label 1, 1 and 2 label 0. Rows are divided 8:1:1 at random. `history` holds the films that the user liked before,
oldest first, the last 50 at most: for the sequence example.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PARTS = {"train": 0.8, "valid": 0.1, "test": 0.1}
HISTORY_MAX = 50


def lines(path: Path, fields: int) -> list[list[str]]:
    """The fields of every line, which are divided by `::`."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), 1):
        row = line.split("::")
        if len(row) != fields:
            raise SystemExit(f"{path}, line {number}: {fields} fields expected, {len(row)} found; is it an official file?")
        rows.append(row)
    return rows


def table(folder: Path) -> pa.Table:
    """One row a rating of 1, 2, 4 or 5, in the order of time."""
    users = {u: (gender, int(age), int(job), zip_code) for u, gender, age, job, zip_code in lines(folder / "users.dat", 5)}
    movies = {m: (year_of(title), genres.split("|")) for m, title, genres in lines(folder / "movies.dat", 3)}
    liked: dict[str, list[int]] = defaultdict(list)
    rows = []
    for user, movie, rating, _ in sorted(lines(folder / "ratings.dat", 4), key=lambda r: int(r[3])):
        if rating == "3":
            continue
        label = int(int(rating) >= 4)
        gender, age, job, zip_code = users[user]
        year, genres = movies[movie]
        seen = liked[user][-HISTORY_MAX:]
        rows.append((label, int(user), int(movie), gender, age, job, zip_code, year, genres, seen))
        if label:
            liked[user].append(int(movie))
    names = "label user_id movie_id gender age occupation zip_code release_year genres history".split()
    types = [pa.int8(), pa.uint32(), pa.uint32(), pa.string(), pa.int64(), pa.int64(), pa.string(), pa.int64()]
    types += [pa.list_(pa.string()), pa.list_(pa.uint32())]
    columns = list(zip(*rows, strict=True))
    return pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=names)


def year_of(title: str) -> int | None:
    """The year in brackets at the end of a title."""
    found = re.search(r"\((\d{4})\)\s*$", title)
    return int(found[1]) if found else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, help="folder of ratings.dat, users.dat and movies.dat")
    parser.add_argument("out", type=Path, help="folder for train.parquet, valid.parquet and test.parquet")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    whole = table(options.source)
    order = np.random.default_rng(options.seed).permutation(whole.num_rows)
    ends = np.round(np.cumsum(list(PARTS.values())) * whole.num_rows).astype(int)
    options.out.mkdir(parents=True, exist_ok=True)
    for (name, _), begin, end in zip(PARTS.items(), [0, *ends[:-1]], ends, strict=True):
        part = whole.take(np.sort(order[begin:end]))
        pq.write_table(part, options.out / f"{name}.parquet", row_group_size=65_536)
        print(f"{options.out / name}.parquet: {part.num_rows:,} rows")


if __name__ == "__main__":
    main()
