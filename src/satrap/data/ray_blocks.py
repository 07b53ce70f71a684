"""A `ray.data.Dataset` as the data of a job: each of its blocks becomes a Parquet file that lies in Ray's object store.

    path = publish(ray.data.read_parquet("s3://logs/").map_batches(clean), "logs")      # raydata://logs
    job = Job(data=Data(train=(path,), label=…), …)
    satrap.launch.run(job, servers=2, workers=2)                                        # on the Ray of this process

To the reader they are files like others, so all that holds of files holds of them: blocks are dealt to the workers,
shuffled, and positions in them are exact. They last as long as the process that published them. Who publishes the same
rows in the same blocks again may resume a run; other blocks are refused as any changed file is.
"""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem

from satrap.errors import DataError

SCHEME = "raydata"
_NAMESPACE = "satrap"
_published: dict[str, Any] = {}
"""Name → the actor that holds the blocks. It ends with this process."""


def publish(dataset: Any, name: str) -> str:
    """Computes a dataset once, in order, and returns the path that stands for it in a job: `raydata://<name>`.

    The blocks go to the object store of the Ray that this process is connected to, which spills to disk what does not
    fit. Publishing another dataset under the same name replaces it; not while a run reads it.
    Raises DataError for an empty dataset, a name that is none, and where Ray is missing or not connected.
    """
    ray = _ray(f"dataset '{name}'")
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise DataError(f"'{name}' is no name for a dataset: letters, digits, - and _")
    dataset.context.execution_options.preserve_order = True
    tables = dataset.map_batches(_encode, batch_format="pyarrow", batch_size=None, zero_copy_batch=True).to_arrow_refs()
    sizes = ray.get([ray.remote(_sizes).options(num_cpus=0).remote(t) for t in tables])
    files = [(t, row, size) for t, found in zip(tables, sizes, strict=True) for row, size in enumerate(found) if size]
    if not files:
        raise DataError(f"dataset '{name}' has no rows")
    _published.pop(name, None)
    actor = ray.remote(_Blocks).options(num_cpus=0, name=_actor(name), namespace=_NAMESPACE, max_concurrency=8)
    _published[name] = actor.remote([([t], row, size) for t, row, size in files])
    ray.get(_published[name].sizes.remote())  # it has begun
    return f"{SCHEME}://{name}"


def _encode(block: pa.Table) -> pa.Table:
    """One row: the block as a Parquet file of one row group, the same bytes for the same rows."""
    out = io.BytesIO()
    if block.num_rows:
        pq.write_table(block.replace_schema_metadata(None), out, row_group_size=block.num_rows)
    return pa.table({"file": pa.array([out.getvalue()], pa.large_binary())})


def _sizes(table: pa.Table) -> list[int]:
    if "file" not in table.column_names:
        return []  # Ray has nothing encode an empty block
    return [len(file.as_buffer()) for file in table.column("file")]


def _actor(name: str) -> str:
    return f"satrap-dataset:{name}"


class _Blocks:
    """Holds references to the blocks of one dataset, and hands them out."""

    def __init__(self, files: list[tuple[list[Any], int, int]]) -> None:
        self._files = files

    def sizes(self) -> list[int]:
        """Bytes of each file."""
        return [size for _, _, size in self._files]

    def file(self, index: int) -> tuple[list[Any], int]:
        """Where a file is: a reference, in a list so that it is not resolved, and a row."""
        refs, row, _ = self._files[index]
        return refs, row


class RayBlocks(AbstractFileSystem):  # type: ignore[misc]
    """The published datasets of a Ray cluster, as fsspec has it: a folder each, of one Parquet file a block.

    Known to fsspec by its scheme wherever satrap is installed.
    """

    protocol = SCHEME
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Of a dataset or of one of its files. Raises FileNotFoundError."""
        name, _, file = self._strip_protocol(path).partition("/")
        sizes = self._sizes(name)
        if not file:
            return {"name": name, "size": 0, "type": "directory"}
        index = _index(file)
        if index is None or index >= len(sizes):
            raise FileNotFoundError(path)
        return {"name": f"{name}/{file}", "size": sizes[index], "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The files of a dataset."""
        name, _, file = self._strip_protocol(path).partition("/")
        count = len(self._sizes(name))
        found = [self.info(f"{name}/{i:06d}.parquet") for i in range(count)] if not file else [self.info(path)]
        return found if detail else [f["name"] for f in found]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise DataError(f"{SCHEME}://{path}: published datasets are read only")
        name, _, file = self._strip_protocol(path).partition("/")
        index = _index(file)
        if index is None:
            raise FileNotFoundError(path)
        ray = _ray(path)
        (ref,), row = ray.get(self._blocks(name).file.remote(index))
        return pa.BufferReader(ray.get(ref).column("file")[row].as_buffer())

    def _sizes(self, name: str) -> list[int]:
        sizes: list[int] = _ray(name).get(self._blocks(name).sizes.remote())
        return sizes

    def _blocks(self, name: str) -> Any:
        try:
            return _ray(name).get_actor(_actor(name), namespace=_NAMESPACE)
        except ValueError as e:
            raise DataError(
                f"{SCHEME}://{name}: no dataset of this name is published on this Ray cluster; a dataset ends with the "
                "process that published it: publish it there, and run the job from there"
            ) from e


def _index(file: str) -> int | None:
    stem, dot, ending = file.partition(".")
    return int(stem) if dot and ending == "parquet" and stem.isdigit() else None


def _ray(what: str) -> Any:
    try:
        import ray
    except ImportError as e:
        raise DataError(f"{what} is read through Ray, which is not installed: pip install 'satrap[ray]'") from e
    if not ray.is_initialized():
        raise DataError(f"{what}: this process is connected to no Ray; call ray.init() first")
    return ray
