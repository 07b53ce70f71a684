import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

COLUMNS = ["workclass", "education", "marital-status", "occupation", "relationship", "native-country"]


class Net(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(n, 8) for n in sizes)
        self.layers = nn.Sequential(nn.Linear(8 * len(COLUMNS), 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids):
        x = torch.cat([e(ids[:, i]) for i, e in enumerate(self.embeddings)], dim=1)
        return self.layers(x)


def load(path, vocabularies):
    table = pq.read_table(path).to_pydict()
    # A word that was not there in training has no row: it shares the last one with all others.
    ids = [[v.get(word, len(v)) for word in table[c]] for c, v in zip(COLUMNS, vocabularies)]
    labels = [float(word == ">50K") for word in table["income"]]
    return torch.tensor(ids).T, torch.tensor(labels)


def auc(scores, labels):
    rank = scores.argsort().argsort().double() + 1
    positives = labels.sum().double()
    area = rank[labels == 1].sum() - positives * (positives + 1) / 2
    return float(area / (positives * (len(labels) - positives)))


torch.manual_seed(0)
words = pq.read_table("examples/adult/train.parquet").to_pydict()
vocabularies = [{word: i for i, word in enumerate(sorted(set(words[c])))} for c in COLUMNS]
ids, labels = load("examples/adult/train.parquet", vocabularies)
net = Net([len(v) + 1 for v in vocabularies])
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for epoch in range(3):
    for batch in torch.randperm(len(ids)).split(256):
        loss = binary_cross_entropy_with_logits(net(ids[batch]).squeeze(1), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
ids, labels = load("examples/adult/test.parquet", vocabularies)
with torch.inference_mode():
    print(f"test AUC {auc(net(ids).squeeze(1), labels):.4f}")
