"""Rows to bytes and back, and ids to servers, against plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satrap.errors import StoreError
from satrap.ps import Placement
from satrap.schema import SGD, Table, WireFormat
from satrap.store import Store, _native, decode_rows, encode_fitted, encode_rows, fp16_scale, gather, route, scatter

FP32, FP16, INT8 = WireFormat.FP32, WireFormat.FP16, WireFormat.INT8
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def reference(rows: NDArray[np.float32], form: WireFormat, scale: float) -> tuple[bytes, NDArray[np.float32]]:
    """The bytes of rows, and what they are read as."""
    if form is FP32:
        return rows.tobytes(), rows
    with np.errstate(all="ignore"):
        if form is FP16:
            halves = (rows / np.float32(scale)).astype(np.float16)
            raw, back = halves.tobytes(), halves.astype(np.float32) * np.float32(scale)
        else:
            most = np.abs(rows).max(1, keepdims=True, initial=0)
            finite = np.isfinite(rows).all(1, keepdims=True)
            sent = finite & (most >= 2.0**-118)
            scales = np.where(sent, most / np.float32(127), np.where(finite, 0, np.nan)).astype(np.float32)
            codes = np.where(sent, np.rint(rows * (np.float32(127) / most)), 0).astype(np.int8)
            raw, back = scales.tobytes() + codes.tobytes(), codes.astype(np.float32) * scales
    return raw + bytes(-len(raw) % 4), back


@st.composite
def rows_and_order(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.uint32] | None]:
    dim = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 16, 17, 64, 100]))
    count = draw(st.integers(0, 6))
    kind = draw(st.sampled_from(["any bits", "normal", "of many sizes"]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = (count, dim)
    if kind == "any bits":
        rows = random.integers(0, 2**32, size, np.uint32).view(np.float32)
    else:
        rows = random.standard_normal(size).astype(np.float32)
        if kind == "of many sizes":
            rows = np.ldexp(rows, random.integers(-140, 120, size)).astype(np.float32)
    order = draw(st.none() | st.lists(st.integers(0, count - 1), max_size=9)) if count else None
    return rows, None if order is None else np.array(order, np.uint32)


@settings(deadline=None, max_examples=400)
@given(case=rows_and_order(), form=st.sampled_from(WireFormat), offset=st.integers(0, 3))
def test_rows_become_the_bytes_of_their_format_and_come_back(case: Any, form: WireFormat, offset: int) -> None:
    rows, order = case
    scale = fp16_scale(rows) if form is FP16 else 1.0
    picked = rows if order is None else rows[order]
    raw, back = reference(picked, form, scale)
    data = encode_rows(rows, form, scale, order=order)
    assert_same_bytes(data, raw, form)

    # Bytes of a message lie at any address; nothing outside of the rows is touched.
    odd = np.frombuffer(bytes(offset) + data.tobytes(), np.uint8)[offset:]
    out = np.full((picked.shape[0], rows.shape[1]), 7, np.float32)
    decode_rows(odd, *out.shape, form, scale, out)
    np.testing.assert_array_equal(out, back)

    positions = np.random.default_rng(1).permutation(picked.shape[0] + 2)[: picked.shape[0]].astype(np.uint32)
    wide = np.full((picked.shape[0] + 2, rows.shape[1]), 7, np.float32)
    decode_rows(odd, *out.shape, form, scale, wide, positions)
    np.testing.assert_array_equal(wide[positions], back)
    assert (np.delete(wide, positions, axis=0) == 7).all()


@settings(deadline=None, max_examples=200)
@given(
    case=rows_and_order(),
    form=st.sampled_from(WireFormat),
    least=st.sampled_from([1.0, 2.0**-126]),
    guess=st.integers(-126, 113),
)
def test_a_guess_of_the_scale_changes_nothing(case: Any, form: WireFormat, least: float, guess: int) -> None:
    # Bug: a guess that is too large loses bits without a word, one that is too small makes infinities.
    rows = case[0]
    out = np.empty(form.section_bytes(*rows.shape), np.uint8)
    scale = encode_fitted(rows, form, out, least=least, guess=2.0**guess)
    wanted = fp16_scale(rows, least=least) if form is FP16 else 1.0
    assert scale == wanted
    assert out.tobytes() == encode_rows(rows, form, wanted).tobytes()


def assert_same_bytes(data: NDArray[np.uint8], raw: bytes, form: WireFormat) -> None:
    """Bits, except the sign and payload of a NaN, where numpy and the processor go different ways."""
    got = data.tobytes()
    if form is FP16:
        a, b = np.frombuffer(got, np.float16), np.frombuffer(raw, np.float16)
        assert (np.isnan(a) == np.isnan(b)).all()
        assert (a[~np.isnan(a)].view(np.uint16) == b[~np.isnan(b)].view(np.uint16)).all()
    else:
        assert got == raw


@settings(deadline=None, max_examples=300)
@given(values=st.lists(FINITE, min_size=1, max_size=20))
@example(values=[2.0**-149])
@example(values=[float(np.finfo(np.float32).max)])
@example(values=[65519.0, 65520.0])
def test_the_scale_of_fp16_is_the_smallest_power_of_two_that_holds_every_value(values: list[float]) -> None:
    rows = np.array([values], np.float32)
    scale = fp16_scale(rows)
    most = float(np.abs(rows).max())
    assert np.frexp(scale)[0] == 0.5
    if most == 0:
        assert scale == 1
    else:
        assert most < scale * 2**15
        assert most >= scale * 2**14 or scale == 2.0**-126
    back = np.empty_like(rows)
    decode_rows(encode_rows(rows, FP16, scale), *rows.shape, FP16, scale, back)
    lost = np.abs(rows) >= 2.0**128 - 2.0**116  # nearest to 2^128, which is no fp32
    assert (np.isfinite(back) != lost).all()
    rows, back = rows[~lost], back[~lost]
    np.testing.assert_allclose(back, rows, rtol=2.0**-11, atol=most * 2.0**-39)


def test_a_least_scale_keeps_small_values_as_they_are_until_one_is_large() -> None:
    assert [fp16_scale(np.array([[x, 1e-3]], np.float32), least=1.0) for x in (0, 1, 32767, 32768, 1e6)] == [
        1,
        1,
        1,
        2,
        32,
    ]
    assert fp16_scale(np.zeros((0, 4), np.float32)) == fp16_scale(np.zeros((3, 4), np.float32)) == 1


def test_what_is_not_finite_has_no_say_in_the_scale() -> None:
    rows = np.array([[np.inf, np.nan, 3.0, -np.inf]], np.float32)
    assert fp16_scale(rows) == fp16_scale(np.array([[3.0]], np.float32)) == 2.0**-13


@pytest.mark.parametrize("form", WireFormat)
def test_a_row_that_is_not_finite_arrives_as_one_and_leaves_the_others_alone(form: WireFormat) -> None:
    # So the server refuses the same rows whatever the format.
    for bad in (np.nan, np.inf, -np.inf, np.array(0x7F800001, np.uint32).view(np.float32)):
        rows = np.ones((3, 5), np.float32)
        rows[1, 3] = bad
        scale = fp16_scale(rows) if form is FP16 else 1.0
        back = np.zeros_like(rows)
        decode_rows(encode_rows(rows, form, scale), *rows.shape, form, scale, back)
        assert np.isfinite(back).all(1).tolist() == [True, False, True]
        np.testing.assert_array_equal(back[[0, 2]], rows[[0, 2]])


def test_a_value_too_large_for_its_scale_is_refused_and_never_infinite() -> None:
    for value, fits in ((65519.0, True), (65520.0, False), (-65520.0, False), (1e38, False), (np.inf, True)):
        rows = np.zeros((9, 9), np.float32)
        rows[4, 8] = value
        if fits:
            encode_rows(rows, FP16, 1.0)
        else:
            with pytest.raises(StoreError, match=r"scale 1.0 is too small for fp16; values reach"):
                encode_rows(rows, FP16, 1.0)
    encode_rows(np.full((1, 1), 65519.0 * 2, np.float32), FP16, 2.0)


@pytest.mark.parametrize("form", WireFormat)
def test_dividing_a_batch_changes_no_bit(form: WireFormat) -> None:
    random = np.random.default_rng(4)
    rows = np.ldexp(random.standard_normal((50, 16)), random.integers(-40, 0, (50, 1))).astype(np.float32)
    scale = fp16_scale(rows) if form is FP16 else 1.0
    whole, parts = np.empty_like(rows), np.empty_like(rows)
    decode_rows(encode_rows(rows, form, scale), 50, 16, form, scale, whole)
    order, counts = route(random.integers(0, 2**63, 50).astype(np.uint64), 3, np.arange(8, dtype=np.uint16) % 3, 3)
    for part in np.split(order, np.cumsum(counts)[:-1]):
        decode_rows(encode_rows(rows, form, scale, order=part), part.size, 16, form, scale, parts, part)
    assert whole.tobytes() == parts.tobytes()


def test_rows_are_written_into_the_bytes_that_are_given_with_zeros_behind_them() -> None:
    message = np.full(40, 255, np.uint8)
    rows = np.ones((3, 1), np.float32)
    encode_rows(rows, FP16, out=message[4:12])
    encode_rows(rows, INT8, out=message[12:28])
    assert message[:12].tobytes() == b"\xff" * 4 + bytes.fromhex("003c003c003c0000")
    assert message[12:].tobytes() == np.full(3, 1 / 127, np.float32).tobytes() + b"\x7f\x7f\x7f\0" + b"\xff" * 12


ROWS = np.zeros((2, 3), np.float32)
U32 = np.uint32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode_rows(ROWS.astype(np.float64), FP32), "values must be a contiguous float32 array of 2 dim"),  # type: ignore[arg-type]
        (lambda: encode_rows(ROWS[:, ::2], FP32), "values must be a contiguous float32"),
        (lambda: encode_rows(ROWS, FP32, order=np.array([2], U32)), "an index is beyond the rows of the array"),
        (lambda: encode_rows(ROWS, FP32, order=np.array([0], np.int64)), "order must be a contiguous uint32"),  # type: ignore[arg-type]
        (lambda: encode_rows(ROWS, FP32, out=np.empty(23, np.uint8)), "out has not the bytes of these rows"),
        (lambda: encode_rows(np.zeros((2, 0), np.float32), FP32), "dim must be 1 to 4096"),
        (lambda: encode_rows(ROWS, INT8, 2.0), "int8 has no scale of its own, got 2.0"),
        (lambda: encode_rows(ROWS, FP16, 0.0), "a scale must be a power of two, 2^-126 to 2^127, got 0.0"),
        (lambda: encode_rows(ROWS, FP16, 3.0), "a scale must be a power of two, 2^-126 to 2^127, got 3.0"),
        (lambda: encode_rows(ROWS, FP16, float("nan")), "a scale must be a power of two"),
        (lambda: decode_rows(bytes(23), 2, 3, FP32, 1.0, ROWS), "the buffer has not the bytes of these rows"),
        (lambda: decode_rows(bytes(25), 2, 3, FP32, 1.0, ROWS), "the buffer has not the bytes of these rows"),
        (lambda: decode_rows(bytes(24), 2, 4, FP32, 1.0, ROWS), "rows of dim 4 into an array of dim 3"),
        (lambda: decode_rows(bytes(12), 1, 3, FP32, 1.0, ROWS), "a position, or a row of out, for each row"),
        (
            lambda: decode_rows(bytes(24), 2, 3, FP32, 1.0, ROWS, np.array([0], U32)),
            "a position, or a row of out, for each row",
        ),
        (lambda: decode_rows(bytes(24), 2, 3, FP32, 1.0, ROWS, np.array([0, 2], U32)), "an index is beyond the rows"),
        (lambda: route(np.zeros(1, np.int64), 0, np.zeros(1, np.uint16), 1), "ids must be a contiguous uint64"),  # type: ignore[arg-type]
        (lambda: route(np.zeros(1, np.uint64), 1, np.zeros(1, np.uint16), 1), "one owner a partition"),
        (lambda: route(np.zeros(1, np.uint64), 0, np.ones(1, np.uint16), 1), "an owner is not one of the servers"),
        (lambda: route(np.zeros(1, np.uint64), 17, np.ones(1, np.uint16), 1), "partitions must be 1 to 65536"),
        (lambda: gather(np.zeros(2, np.uint8), np.array([2], U32)), "an index is beyond the rows of the array"),
        (lambda: gather(np.zeros(2, np.uint16), np.array([1], U32)), "elements must be uint64 or uint8, got uint16"),  # type: ignore[type-var]
        (lambda: scatter(np.zeros(1, np.uint8), np.array([2], U32), np.zeros(2, np.uint8)), "an index is beyond"),
        (lambda: scatter(np.zeros(2, np.uint8), np.array([1], U32), np.zeros(2, np.uint8)), "a position for each"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Any, message: str) -> None:
    with pytest.raises(StoreError) as told:
        call()
    assert message in str(told.value)


@settings(deadline=None, max_examples=200)
@given(
    ids=st.lists(st.integers(0, 2**64 - 1), max_size=60),
    bits=st.sampled_from([0, 1, 3, 8]),
    servers=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_ids_are_grouped_by_the_server_of_their_partition_and_keep_their_order(
    ids: list[int], bits: int, servers: int, seed: int
) -> None:
    x = np.array(ids, np.uint64)
    owners = np.random.default_rng(seed).integers(0, servers, 2**bits).astype(np.uint16)
    order, counts = route(x, bits, owners, servers)
    partition = [int(h) >> (64 - bits) for h in _native.mix(x)]
    of = [int(owners[p]) for p in partition]
    assert order.tolist() == sorted(range(len(ids)), key=lambda i: of[i])  # sorted is stable
    assert counts.tolist() == [of.count(s) for s in range(servers)]
    np.testing.assert_array_equal(gather(x, order), x[order])
    versions = np.arange(len(ids), dtype=np.uint8)
    back = np.zeros_like(versions)
    scatter(gather(versions, order), order, back)
    np.testing.assert_array_equal(back, versions)


def test_a_server_gets_the_ids_of_just_its_partitions_of_the_store() -> None:
    # If routing and the store disagreed about a partition, a row would be looked for where it never is.
    store = Store([Table(name="t", dim=1, optimizer=SGD(lr=1.0))], seed=0, partitions=16)
    ids = np.random.default_rng(0).integers(0, 2**64, 500, np.uint64)
    store.pull("t", ids, create=True)
    placement = Placement.even(("a", "b", "c"), 16)
    order, counts = route(ids, 4, np.array(placement.owners, np.uint16), 3)
    parts = np.split(order, np.cumsum(counts)[:-1])
    for server, part in enumerate(parts):
        owned = np.concatenate([store.export_rows("t", p)[0] for p in placement.of(server)])
        assert set(owned.tolist()) == set(ids[part].tolist())
