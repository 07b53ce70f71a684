import os

import numpy as np
from persia.embedding.data import IDTypeFeatureWithSingleID, Label, NonIDTypeFeature, PersiaBatch

BATCH = int(os.environ.get("BATCH", 4096))
IDS = [f"C{i}" for i in range(1, 27)]


def batches(folder, split, requires_grad):
    rows, numbers, label = (np.load(f"{folder}/{split}_{what}.npy") for what in ("rows", "numbers", "label"))
    # Rows are numbers from 0; an id of Persia is none of them, and its low bits choose where it is kept.
    ids = (rows.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    label = label.astype(np.float32).reshape(-1, 1)
    for at in range(0, len(label) - BATCH + 1, BATCH):
        to = slice(at, at + BATCH)
        yield PersiaBatch(
            [IDTypeFeatureWithSingleID(name, ids[i, to].copy()) for i, name in enumerate(IDS)],
            non_id_type_features=[NonIDTypeFeature(numbers[to])],
            labels=[Label(label[to])],
            requires_grad=requires_grad,
        )
