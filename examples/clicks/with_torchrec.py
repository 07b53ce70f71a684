import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

BATCH, DIM = 4096, 16
ROWS = 1 << 18  # of a table: ids are folded into it, so some share a row
NUMBERS, IDS = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]


class Net(nn.Module):
    def __init__(self, tables):
        super().__init__()
        self.embeddings = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
        self.bottom = nn.Sequential(nn.Linear(len(NUMBERS), 64), nn.ReLU())
        width = 64 + DIM * len(IDS)
        self.top = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, numbers, ids):
        return self.top(torch.cat([self.bottom(numbers), self.embeddings(ids).values()], dim=1)).squeeze(1)


def batches(folder, split):
    for path in sorted(Path(folder).glob(f"{split}-*.parquet")):
        for part in pq.ParquetFile(path).iter_batches(BATCH):
            ids = torch.from_numpy(np.concatenate([part[c].to_numpy() for c in IDS]) % ROWS)
            jagged = KeyedJaggedTensor(IDS, ids, lengths=torch.ones(len(ids), dtype=torch.int32))
            numbers = np.stack([part[c].to_numpy() for c in NUMBERS], axis=1)
            yield torch.from_numpy(numbers), jagged, torch.from_numpy(part["label"].to_numpy().astype(np.float32))


def auc(scores, labels):
    rank = scores.argsort().argsort().double() + 1
    positives = labels.sum().double()
    area = rank[labels == 1].sum() - positives * (positives + 1) / 2
    return float(area / (positives * (len(labels) - positives)))


os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", RANK="0", WORLD_SIZE="1")
dist.init_process_group("gloo")
torch.manual_seed(0)
tables = [
    EmbeddingBagConfig(
        name=name,
        embedding_dim=DIM,
        num_embeddings=ROWS,
        feature_names=[name],
        init_fn=lambda weight: nn.init.uniform_(weight, -0.01, 0.01),
    )
    for name in IDS
]
net = Net(tables)
apply_optimizer_in_backward(RowWiseAdagrad, net.embeddings.parameters(), {"lr": 0.02, "eps": 1e-8})
sharders = [EmbeddingBagCollectionSharder()]
wanted = {name: ParameterConstraints(sharding_types=["table_wise"], compute_kernels=["fused"]) for name in IDS}
topology = Topology(world_size=1, compute_device="cpu", local_world_size=1, ddr_cap=16 << 30, hbm_cap=0)
plan = EmbeddingShardingPlanner(topology=topology, constraints=wanted, batch_size=BATCH).plan(net, sharders)
model = DistributedModelParallel(net, device=torch.device("cpu"), plan=plan, sharders=sharders)
dense = torch.optim.Adam([p for n, p in model.named_parameters() if "embeddings" not in n], lr=1e-3)
for numbers, ids, label in batches(sys.argv[1], "train"):
    loss = binary_cross_entropy_with_logits(model(numbers, ids), label)
    dense.zero_grad()
    loss.backward()
    dense.step()
with torch.no_grad():
    found = [(model(numbers, ids), label) for numbers, ids, label in batches(sys.argv[1], "test")]
print(f"test AUC {auc(torch.cat([s for s, _ in found]), torch.cat([y for _, y in found])):.4f}", flush=True)
os._exit(0)  # the process group's threads keep a normal exit waiting
