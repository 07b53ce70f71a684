import torch
from torch import nn

from satrap import Adam, Categorical, Data, Job, Label, Table, Train, Trainer

COLUMNS = ["workclass", "education", "marital-status", "occupation", "relationship", "native-country"]
DIM = 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM * len(COLUMNS), 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, numeric, embeddings):
        # What `KeyedTensor.values()` is: the pooled features side by side, in the order of the job.
        return self.layers(embeddings.cat())


torch.manual_seed(0)
job = Job(
    data=Data(
        train="examples/adult/train.parquet",
        test="examples/adult/test.parquet",
        label=Label(column="income", positive=">50K"),
    ),
    # An EmbeddingBagConfig is two things here: a table, and a feature that looks it up. There is no num_embeddings.
    features=[Categorical(name=c) for c in COLUMNS],
    tables=[Table(name=c, dim=DIM) for c in COLUMNS],
    train=Train(batch_size=256, epochs=3, optimizer=Adam(lr=2e-3), embedding_optimizer=Adam(lr=2e-3)),
)
print(f"test AUC {Trainer(job, Net()).fit().test.auc:.4f}")
