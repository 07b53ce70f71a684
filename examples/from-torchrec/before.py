import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

COLUMNS = ["workclass", "education", "marital-status", "occupation", "relationship", "native-country"]
ROWS, DIM = 1000, 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        configs = [
            EmbeddingBagConfig(name=c, embedding_dim=DIM, num_embeddings=ROWS, feature_names=[c]) for c in COLUMNS
        ]
        self.embeddings = EmbeddingBagCollection(tables=configs)
        self.layers = nn.Sequential(nn.Linear(DIM * len(COLUMNS), 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids):
        return self.layers(self.embeddings(ids).values())


def load(path):
    table = pq.read_table(path).to_pydict()
    # A table has a fixed number of rows, so words are hashed to them, and some words share a row.
    ids = [[sum(word.encode()) * 31 % ROWS for word in table[c]] for c in COLUMNS]
    return torch.tensor(ids), torch.tensor([float(word == ">50K") for word in table["income"]])


torch.manual_seed(0)
ids, labels = load("examples/adult/train.parquet")
net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
for epoch in range(3):
    for batch in torch.randperm(len(labels)).split(256):
        lengths = torch.ones(len(COLUMNS) * len(batch), dtype=torch.int64)
        jagged = KeyedJaggedTensor(keys=COLUMNS, values=ids[:, batch].reshape(-1), lengths=lengths)
        loss = binary_cross_entropy_with_logits(net(jagged).squeeze(1), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"training loss {float(loss):.4f}")
