import torch
from torch import nn

from satrap import Adam, Categorical, Data, Job, Label, Train, Trainer

COLUMNS = ["workclass", "education", "marital-status", "occupation", "relationship", "native-country"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8 * len(COLUMNS), 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, numeric, embeddings):
        return self.layers(embeddings.cat())


torch.manual_seed(0)
label = Label(column="income", positive=">50K")
data = Data(train="examples/adult/train.parquet", test="examples/adult/test.parquet", label=label)
adam = Adam(lr=2e-3)
train = Train(batch_size=256, epochs=3, optimizer=adam, embedding_optimizer=adam)
job = Job(data=data, features=[Categorical(name=c) for c in COLUMNS], default_dim=8, train=train)
print(f"test AUC {Trainer(job, Net()).fit().test.auc:.4f}")
