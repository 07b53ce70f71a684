"""Types of the native core. Use `satrap.store`, which gives names, docs and checks."""

from typing import Any, overload

from numpy import bool_, float32, int32, int64, uint8, uint16, uint32, uint64
from numpy.typing import NDArray

class TableSpec:
    @property
    def dim(self) -> int: ...
    @property
    def state_floats(self) -> int: ...
    @property
    def value_bytes(self) -> int: ...

def table_spec(
    dim: int,
    format: int,
    optimizer: int,
    settings: list[float],
    initializer: int,
    a: float,
    b: float,
    max_gradient: float,
    key: int,
    /,
) -> TableSpec: ...

class Ticket:
    def unique(self, table: int, /) -> NDArray[uint64]: ...
    def positions(self, feature: int, /) -> NDArray[int32]: ...
    @property
    def samples(self) -> int: ...
    @property
    def ids(self) -> int: ...

class Store:
    def __init__(self, specs: list[TableSpec], partition_bits: int, threads: int, /) -> None: ...
    @property
    def threads(self) -> int: ...
    def pull(
        self,
        tables: list[int],
        ids: list[NDArray[uint64]],
        values: list[NDArray[float32]],
        versions: list[NDArray[uint8]],
        hints: list[NDArray[uint32]],
        create: bool,
        /,
    ) -> None: ...
    def push(
        self,
        tables: list[int],
        ids: list[NDArray[uint64]],
        gradients: list[NDArray[float32]],
        versions: list[NDArray[uint8] | None],
        hints: list[NDArray[uint32] | None],
        lr_factor: float,
        outcomes: list[NDArray[uint16]] | None,
        /,
    ) -> tuple[int, int, int, NDArray[int64]]: ...
    def ticket(self, features: list[tuple[Any, ...]], samples: int, /) -> Ticket: ...
    def pool(
        self,
        ticket: Ticket,
        rows: list[NDArray[float32]],
        out: NDArray[float32],
        sequences: list[NDArray[float32]],
        masks: list[NDArray[bool_]],
        /,
    ) -> None: ...
    def unpool(
        self,
        ticket: Ticket,
        gradient: NDArray[float32] | None,
        sequences: list[NDArray[float32] | None],
        rows: list[NDArray[float32]],
        /,
    ) -> None: ...
    def erase(self, table: int, ids: NDArray[uint64], /) -> int: ...
    def reserve_rows(self, table: int, rows: int, partitions: list[int] | None, /) -> None: ...
    def clear(self) -> None: ...
    def size(self, table: int, /) -> tuple[int, int, int, int]: ...
    def export_rows(
        self, table: int, partition: int, /
    ) -> tuple[NDArray[uint64], NDArray[uint8], NDArray[float32]]: ...
    def import_rows(
        self, table: int, ids: NDArray[uint64], values: NDArray[uint8], state: NDArray[float32], /
    ) -> None: ...

def has_duplicates(ids: NDArray[uint64], /) -> bool: ...
def initial_values(spec: TableSpec, id: int, /) -> NDArray[float32]: ...
def mix(ids: NDArray[uint64], /) -> NDArray[uint64]: ...
def instruction_level() -> str: ...
@overload
def gather(array: NDArray[uint64], order: NDArray[uint32], out: NDArray[uint64], /) -> None: ...
@overload
def gather(array: NDArray[uint8], order: NDArray[uint32], out: NDArray[uint8], /) -> None: ...
@overload
def scatter(array: NDArray[uint64], positions: NDArray[uint32], out: NDArray[uint64], /) -> None: ...
@overload
def scatter(array: NDArray[uint8], positions: NDArray[uint32], out: NDArray[uint8], /) -> None: ...
def largest(values: NDArray[float32], /) -> float: ...
def half_scale(largest: float, least: float, /) -> float: ...
def encode_rows(
    values: NDArray[float32], format: int, scale: float, order: NDArray[uint32] | None, out: NDArray[uint8], /
) -> bool: ...
def decode_rows(
    buffer: NDArray[uint8],
    rows: int,
    format: int,
    scale: float,
    out: NDArray[float32],
    positions: NDArray[uint32] | None,
    /,
) -> None: ...
def route(
    ids: NDArray[uint64], partition_bits: int, owners: NDArray[uint16], servers: int, /
) -> tuple[NDArray[uint32], NDArray[int64]]: ...
