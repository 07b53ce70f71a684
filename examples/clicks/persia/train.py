import os
import time

import numpy as np
import torch
from clicks import BATCH, batches
from persia.ctx import TrainCtx, eval_ctx
from persia.data import DataLoader, IterableDataset, StreamingDataset
from persia.embedding import EmbeddingConfig
from persia.embedding.optim import Adagrad
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU())
        width = 64 + 26 * 16
        self.top = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, numbers, embeddings):
        return self.top(torch.cat([self.bottom(numbers[0]), torch.cat(embeddings, dim=1).float()], dim=1))


class TestRows(IterableDataset):
    def __iter__(self):
        return batches(os.environ["DATA"], "test", requires_grad=False)


def auc(scores, labels):
    rank = scores.argsort().argsort().astype(float) + 1
    positives = labels.sum()
    return (rank[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives))


torch.manual_seed(0)
torch.set_num_threads(int(os.environ.get("THREADS", 1)))
net = Net()
loss_of = nn.BCEWithLogitsLoss()
steps = int(os.environ["STEPS"])
with TrainCtx(
    model=net,
    embedding_optimizer=Adagrad(lr=0.02, initial_accumulator_value=1e-2, vectorwise_shared=True),
    embedding_config=EmbeddingConfig(emb_initialization=(-0.01, 0.01)),
    dense_optimizer=torch.optim.Adam(net.parameters(), lr=1e-3),
    mixed_precision=False,
    device_id=None,
) as ctx:
    print("ready", flush=True)
    loader = iter(DataLoader(StreamingDataset(10), embedding_staleness=10, timeout_ms=60000))
    for step in range(steps):
        batch = next(loader)
        print(f"samples {step * BATCH}", flush=True)
        output, labels = ctx.forward(batch)
        loss = ctx.backward(loss_of(output, labels[0]))
    print(f"samples {steps * BATCH}", flush=True)
    time.sleep(2)  # for the last gradients: nothing tells when they have been applied
    scores, truth = [], []
    net.eval()
    with eval_ctx(model=net) as evaluation, torch.no_grad():
        for batch in DataLoader(TestRows(buffer_size=10)):
            output, labels = evaluation.forward(batch)
            scores.append(output.numpy().ravel().copy())
            truth.append(labels[0].numpy().ravel().copy())
    print(f"test AUC {auc(np.concatenate(scores), np.concatenate(truth)):.6f}", flush=True)
os._exit(0)
