"""Every message survives its frames, whatever is in it, and its arrays are not copied on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_messages import ANY, EACH, any_of, fields, frames_of, same

from satrap import ps, wire
from satrap.wire import Kind, Message, Push, RowsReply, Section, decode, encode


def test_there_is_a_strategy_and_an_example_for_every_message() -> None:
    every = {c for c in vars(wire).values() if isinstance(c, type) and issubclass(c, Message)} - {Message}
    assert ANY.keys() == every == {type(m) for m in EACH.values()}
    assert len(every) == len(Kind)


@pytest.mark.parametrize("cls", ANY, ids=lambda c: c.__name__)
def test_a_message_survives_its_frames(cls: type[Message]) -> None:
    @settings(deadline=None, max_examples=60)
    @given(message=any_of(cls), offset=st.integers(0, 7))
    def check(message: Message, offset: int) -> None:
        frames = frames_of(message)
        # A socket hands small frames over at any address.
        odd = [memoryview(bytes(offset) + f)[offset:] for f in frames]
        for received in (frames, odd):
            back = decode(received)
            assert type(back) is cls
            for name in fields(message):
                assert same(getattr(back, name), getattr(message, name)), name
            assert frames_of(back) == frames

    check()


@pytest.mark.parametrize("message", EACH.values(), ids=EACH)
def test_arrays_of_a_decoded_message_are_aligned_and_cannot_be_written(message: Message) -> None:
    back = decode([memoryview(bytearray(b"x" + f))[1:] for f in frames_of(message)])
    for array in _arrays(back):
        if array.base is not None or array.size:
            assert array.flags.aligned
            assert array.__array_interface__["data"][0] % 8 == 0
            assert not array.flags.writeable


def _arrays(message: Message) -> list[np.ndarray[Any, Any]]:
    values = [getattr(message, f) for f in fields(message) if f != "staleness"]
    return [v for v in values if isinstance(v, np.ndarray)]


def test_arrays_are_not_copied_on_either_side() -> None:
    sections = (Section(0, rows=3, dim=2),)
    ids, gradients = np.arange(3, dtype=np.uint64), np.zeros(24, np.uint8)
    versions = np.zeros(3, np.uint8)
    push = Push(client=0, epoch=0, seq=1, sections=sections, ids=ids, gradients=gradients, versions=versions)
    frames = encode(push)
    ids[0], gradients[0], versions[0] = 99, 99, 99
    assert [f[0] for f in frames[1:]] == [99, 99, 99]
    buffers = [bytearray(f) for f in frames[:2]] + [np.zeros(24, np.uint8), np.zeros(3, np.uint8)]
    back = decode(buffers)
    assert isinstance(back, Push)
    buffers[1][0] = 7
    buffers[2][0] = 8
    assert (back.ids[0], back.gradients[0]) == (7, 8)


def test_frames_of_a_socket_are_taken_as_they_are() -> None:
    zmq = pytest.importorskip("zmq")
    reply = EACH["rows_reply"]
    back = decode([zmq.Frame(f) for f in encode(reply)])
    assert isinstance(back, RowsReply)
    assert frames_of(back) == frames_of(reply)


def test_slices_are_where_the_rows_and_values_of_a_table_lie() -> None:
    message = EACH["rows_reply"]
    assert isinstance(message, RowsReply)
    assert wire.row_slices(message.sections) == [slice(0, 2), slice(2, 3)]
    first, second = wire.value_slices(message.sections)
    assert message.values[first].view(np.float32).tolist() == [1.0, -2.0]
    assert message.values[second].view(np.float16).tolist()[:3] == [1.0, -2.0, 0.25]
    assert wire.value_slices(()) == []


def test_words_of_the_service_have_a_place_on_the_wire() -> None:
    # The wire may not import the service: what they share is held together here.
    assert wire.STALENESS_BINS == ps.STALENESS_BINS
    assert set(wire.REASONS) == set(ps.Refused)
    # What lies on disk is told by a server's metrics; a client is not asked to add that up.
    assert wire.TableSize._fields == tuple(f for f in ps.TableStats.__slots__ if f != "cold")
