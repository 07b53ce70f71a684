import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

BATCH, DIM = 4096, 16
ROWS = 1 << 18  # of a table: ids are folded into it, so some share a row
NUMBERS, IDS = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(ROWS, DIM, sparse=True) for _ in IDS)
        for table in self.embeddings:
            nn.init.uniform_(table.weight, -0.01, 0.01)
        self.bottom = nn.Sequential(nn.Linear(len(NUMBERS), 64), nn.ReLU())
        width = 64 + DIM * len(IDS)
        self.top = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, numbers, ids):
        rows = [table(column) for table, column in zip(self.embeddings, ids)]
        return self.top(torch.cat([self.bottom(numbers), *rows], dim=1)).squeeze(1)


def batches(folder, split):
    for path in sorted(Path(folder).glob(f"{split}-*.parquet")):
        for part in pq.ParquetFile(path).iter_batches(BATCH):
            ids = np.stack([part[c].to_numpy() for c in IDS]) % ROWS
            numbers = np.stack([part[c].to_numpy() for c in NUMBERS], axis=1)
            label = part["label"].to_numpy().astype(np.float32)
            yield torch.from_numpy(numbers), torch.from_numpy(ids), torch.from_numpy(label)


def auc(scores, labels):
    rank = scores.argsort().argsort().double() + 1
    positives = labels.sum().double()
    area = rank[labels == 1].sum() - positives * (positives + 1) / 2
    return float(area / (positives * (len(labels) - positives)))


torch.manual_seed(0)
net = Net()
sparse = torch.optim.Adagrad(net.embeddings.parameters(), lr=0.02, eps=1e-8)
dense = torch.optim.Adam([*net.bottom.parameters(), *net.top.parameters()], lr=1e-3)
for numbers, ids, label in batches(sys.argv[1], "train"):
    loss = binary_cross_entropy_with_logits(net(numbers, ids), label)
    sparse.zero_grad()
    dense.zero_grad()
    loss.backward()
    sparse.step()
    dense.step()
with torch.inference_mode():
    found = [(net(numbers, ids), label) for numbers, ids, label in batches(sys.argv[1], "test")]
print(f"test AUC {auc(torch.cat([s for s, _ in found]), torch.cat([y for _, y in found])):.4f}")
