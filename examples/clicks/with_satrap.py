import sys

from satrap import MLP, Adam, Categorical, Data, Job, Label, Numeric, RowWiseAdagrad, Train, Trainer
from satrap.launch import run

folder = sys.argv[1]
job = Job(
    data=Data(train=f"{folder}/train-*.parquet", test=f"{folder}/test-*.parquet", label=Label(column="label"), valid=0),
    features=[Numeric(name=f"I{i}") for i in range(1, 14)] + [Categorical(name=f"C{i}") for i in range(1, 27)],
    default_dim=16,
    model=MLP(hidden=(256, 64), numeric_hidden=(64,)),
    train=Train(batch_size=4096, optimizer=Adam(lr=1e-3), embedding_optimizer=RowWiseAdagrad(lr=0.02, eps=1e-8)),
)
servers = int(sys.argv[2]) if len(sys.argv) > 2 else 0
result = run(job, servers=servers) if servers else Trainer(job).fit()
print(f"test AUC {result.test.auc:.4f}")
