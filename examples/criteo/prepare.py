"""The original Criteo files (tab-separated text, .gz or not) to Parquet, in a stream: memory does not follow their size.

    python examples/criteo/prepare.py day_0.gz data/criteo/day_0.parquet

Each row is a label, 13 integers and 26 hexadecimal ids of 32 bits, any of them missing. Ids become integers, which
train faster than text: nothing is hashed any more. The data may not be passed on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

NUMBERS = [f"I{i}" for i in range(1, 14)]
IDS = [f"C{i}" for i in range(1, 27)]
BLOCK_BYTES = 32 << 20


def from_hex(column: pa.Array) -> pa.Array:
    """Eight hexadecimal digits to an integer; missing stays missing."""
    codes = pc.dictionary_encode(column)
    values = [None if v is None else int(v, 16) for v in codes.dictionary.to_pylist()]
    return pa.array(values, pa.uint32()).take(codes.indices)


def convert(source: Path, out: Path, rows_max: int | None = None) -> int:
    """Converts one file. Returns its rows."""
    types = {"label": pa.int8(), **dict.fromkeys(NUMBERS, pa.int32()), **dict.fromkeys(IDS, pa.string())}
    reader = csv.open_csv(
        source,
        read_options=csv.ReadOptions(column_names=list(types), block_size=BLOCK_BYTES),
        parse_options=csv.ParseOptions(delimiter="\t"),
        convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
    )
    schema = pa.schema([(name, pa.uint32() if name in IDS else kind) for name, kind in types.items()])
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with pq.ParquetWriter(out, schema) as writer:
        for batch in reader:
            if rows_max is not None:
                batch = batch.slice(0, rows_max - rows)
            columns = [from_hex(batch[n]) if n in IDS else batch[n] for n in schema.names]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=131_072)
            rows += batch.num_rows
            if rows == rows_max:
                break
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=None, help="convert only the first so many")
    options = parser.parse_args(argv)
    try:
        rows = convert(options.source, options.out, options.rows)
    except (OSError, pa.ArrowInvalid) as e:
        sys.exit(f"{options.source}: {e}")
    print(f"{options.out}: {rows:,} rows")


if __name__ == "__main__":
    main()
