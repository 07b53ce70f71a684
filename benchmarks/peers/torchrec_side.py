"""TorchRec, one process: fused row-wise Adagrad in FBGEMM's CPU kernel, table-wise plan, rows mapped beforehand.

`DistributedModelParallel` is used although there is one process: the unsharded collection is far slower. Huge pages
(`THP_MEM_ALLOC_ENABLE=1`, set by the caller) help FBGEMM; it is allowed them.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import warnings
from typing import Any

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import fbgemm_gpu  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torchrec  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor  # noqa: E402
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: E402
from torchrec.distributed.model_parallel import DistributedModelParallel  # noqa: E402
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology  # noqa: E402
from torchrec.distributed.planner.types import ParameterConstraints  # noqa: E402
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward  # noqa: E402
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad  # noqa: E402

from benchmarks.peers.loop import (  # noqa: E402
    DENSE_LR,
    DIM,
    EMBEDDING_EPS,
    EMBEDDING_LR,
    INITIAL,
    arguments,
    measure,
    network,
    pin,
    vocabularies,
)


class Net(nn.Module):
    """Collection and dense network."""

    def __init__(self, collection: EmbeddingBagCollection, dense: nn.Module) -> None:
        super().__init__()
        self.collection = collection
        self.dense = dense

    def forward(self, numbers: Tensor, ids: KeyedJaggedTensor) -> Tensor:
        """numbers [B, 13], one id a feature and sample → logits [B]"""
        logits: Tensor = self.dense(numbers, self.collection(ids).values())
        return logits


def main(argv: list[str]) -> int:
    """Trains, prints one JSON line."""
    options = arguments(__doc__ or "").parse_args(argv)
    pin(options.cores)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    _single_process_group()
    sizes = vocabularies(options.arrays)
    keys = [f"C{i + 1}" for i in range(len(sizes))]
    model = _sharded(sizes, keys, options)
    dense = [p for name, p in model.named_parameters() if "collection" not in name]
    adam = torch.optim.Adam(dense, lr=DENSE_LR, fused=True)
    loss_of = nn.BCEWithLogitsLoss()
    shapes: dict[int, tuple[Tensor, Tensor]] = {}

    def ids(rows: Tensor) -> KeyedJaggedTensor:
        count = rows.shape[1]
        if count not in shapes:
            total = len(keys) * count
            shapes[count] = torch.ones(total, dtype=torch.int32), torch.arange(total + 1, dtype=torch.int32)
        lengths, offsets = shapes[count]
        return KeyedJaggedTensor(keys, rows.reshape(-1), lengths=lengths, offsets=offsets, stride=count)

    def forward(rows: Tensor, numbers: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            logits: Tensor = model(numbers, ids(rows))
        return logits

    def step(rows: Tensor, numbers: Tensor, label: Tensor) -> None:
        loss = loss_of(forward(rows, numbers).float(), label)
        adam.zero_grad()
        loss.backward()
        adam.step()

    answer: dict[str, Any] = measure(options, step, forward)
    versions = {"torchrec": torchrec.__version__, "fbgemm": fbgemm_gpu.__version__}
    print(json.dumps({"side": "torchrec", **versions, **answer}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # the process group's threads keep a normal exit waiting


def _sharded(sizes: list[int], keys: list[str], options: Any) -> DistributedModelParallel:
    def initial(weight: Tensor) -> Tensor:
        return nn.init.uniform_(weight, -INITIAL, INITIAL)

    tables = [
        EmbeddingBagConfig(name=f"t{k}", embedding_dim=DIM, num_embeddings=v, feature_names=[k], init_fn=initial)
        for k, v in zip(keys, sizes, strict=True)
    ]
    collection = EmbeddingBagCollection(device=torch.device("meta"), tables=tables)
    kinds = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad}
    apply_optimizer_in_backward(
        kinds[options.optimizer], collection.parameters(), {"lr": EMBEDDING_LR, "eps": EMBEDDING_EPS}
    )
    net = Net(collection, network(options.model, len(keys)))
    wanted = {t.name: ParameterConstraints(sharding_types=["table_wise"], compute_kernels=["fused"]) for t in tables}
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=1, compute_device="cpu", local_world_size=1, ddr_cap=16 * 2**30, hbm_cap=0),
        constraints=wanted,
        batch_size=options.batch,
    )
    sharders = [EmbeddingBagCollectionSharder()]
    return DistributedModelParallel(
        net, device=torch.device("cpu"), plan=planner.plan(net, sharders), sharders=sharders
    )


def _single_process_group() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
