"""A made-up click log with every kind of column that satrap infers. The best possible AUC is printed.

    python examples/own-data/make_clicks.py clicks.parquet --rows 100000
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, ITEMS, TAGS = 2000, 500, 30


def clicks(rows: int, seed: int) -> tuple[pa.Table, float]:
    """The log, and the AUC of who knows the true probabilities."""
    rng = np.random.default_rng(seed)
    user = rng.zipf(1.2, rows) % USERS
    item = rng.zipf(1.3, rows) % ITEMS
    price = rng.gamma(2.0, 10.0, rows)
    tags_of = [rng.choice(TAGS, size=rng.integers(1, 5), replace=False) for _ in range(ITEMS)]
    taste, appeal, tag_value = rng.normal(size=USERS), rng.normal(size=ITEMS), rng.normal(size=TAGS)
    score = 1.2 * taste[user] + appeal[item] - 0.03 * price + np.array([tag_value[t].mean() for t in tags_of])[item]
    click = rng.random(rows) < 1 / (1 + np.exp(-(score - 1.0)))
    table = pa.table(
        {
            "user": [f"user-{u}" for u in user],
            "item": item,
            "tags": [[f"tag-{t}" for t in tags_of[i]] for i in item],
            "price": price,
            "click": click.astype(np.int8),
        }
    )
    rank = np.empty(rows)
    rank[np.argsort(score)] = np.arange(1, rows + 1)
    positives = int(click.sum())
    auc = (rank[click].sum() - positives * (positives + 1) / 2) / (positives * (rows - positives))
    return table, float(auc)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    table, auc = clicks(options.rows, options.seed)
    pq.write_table(table, options.out, row_group_size=20_000)
    print(f"{options.out}: {options.rows:,} rows; who knows the true probabilities has AUC {auc:.4f}")
