"""Pushes to S servers. U unique ids of a table, D its dimension."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from satrap.errors import ServerLost, ServerUnreachable, WireError
from satrap.ps.exchange import Call, Exchange
from satrap.ps.packing import LEAST_GRADIENT_SCALE, Directory, joined, pack, pack_fitted, scale_for
from satrap.ps.placement import Placement
from satrap.ps.protocol import Ack, PushRequest, Refused
from satrap.ps.pushes import Name
from satrap.ps.routing import Router, Routes, Share, newest
from satrap.store import gather
from satrap.wire import AckReply, Message, Moved, Push, Section

UNSETTLED_KEPT = 256
"""Pushes that failed, kept so that a second try is known to the servers as the same request."""

_NO_IDS = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one server has of a push."""

    push: PushRequest
    """The push, or the rest of one that was divided again."""
    share: Share
    call: Call
    placement: Placement
    """By which it was divided."""


class PendingPush:
    """A push under way: one call a server, and more where parts of it have moved."""

    def __init__(self, pushing: Pushing, push: PushRequest, pieces: list[_Piece]) -> None:
        self._pushing, self._push, self._pieces = pushing, push, pieces
        self.calls = [piece.call for piece in pieces]
        self._lock = threading.Lock()
        self._outcome: Ack | Exception | None = None

    @property
    def client(self) -> int:
        """Who pushes."""
        return self._push.client

    @property
    def name(self) -> Name:
        """(epoch, seq)"""
        return self._push.epoch, self._push.seq

    def result(self) -> Ack:
        """What became of it on all servers. Raises ServiceError and its kinds, and StoreError, when all have answered
        or failed."""
        if self._outcome is None:
            moved = newest(self._answers(self._pieces)[0])
            if moved is None:
                self.resolve()
            else:
                # Those before it first: in a partition that has moved they must come before this one.
                self._pushing.follow(moved)
        assert self._outcome is not None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def _answers(self, pieces: Sequence[_Piece]) -> tuple[list[Message], list[Exception]]:
        answers: list[Message] = []
        errors: list[Exception] = []
        for piece in pieces:
            try:
                answers.append(self._pushing.exchange.wait(piece.call))
            except Exception as e:
                errors.append(e)
        return answers, errors

    def resolve(self) -> None:
        """Waits for what becomes of every part, dividing anew what has moved until none has. Where any may have, by
        who holds the lock under which pushes are sent."""
        with self._lock:
            if self._outcome is None:
                try:
                    self._outcome = self._resolved()
                except Exception as e:
                    self._outcome = e
                self._pushing.settled(self, failed=isinstance(self._outcome, Exception))

    def _resolved(self) -> Ack:
        pieces, settled = self._pieces, list[_Piece]()
        while True:
            answers, errors = self._answers(pieces)
            if errors:
                raise next((e for e in errors if isinstance(e, ServerLost)), errors[0])
            moved = newest(answers)
            settled += [p for p, a in zip(pieces, answers, strict=True) if not isinstance(a, Moved)]
            if moved is None:
                return self._total(settled)
            rest = [p for p, a in zip(pieces, answers, strict=True) if isinstance(a, Moved)]
            pieces = self._pieces = self._pushing.divide_again(rest, moved)
            self.calls += [piece.call for piece in pieces]

    def _total(self, pieces: Sequence[_Piece]) -> Ack:
        total, repeated = Ack(duplicate=True), 0
        for piece in pieces:
            reply = piece.call.answer
            if not isinstance(reply, AckReply):
                where = self._pushing.exchange.where(piece.share.server)
                raise WireError(f"{where} answered a push with {type(reply).__name__}")
            if reply.duplicate:
                repeated += piece.share.ids.size
                continue
            total.duplicate = False
            total.applied += reply.applied
            total.staleness += reply.staleness
            for reason, n in reply.refused.items():
                total.refused[Refused(reason)] = total.refused.get(Refused(reason), 0) + n
        total.repeated = 0 if total.duplicate else repeated
        return total


class Pushing:
    """Sends pushes and knows, for each client and server, which one went before. `submit` under a lock of the owner."""

    def __init__(
        self, exchange: Exchange, directory: Directory, routes: Routes, follow: Callable[[Moved], None]
    ) -> None:
        """`follow`: has the owner go by a newer placement; it calls `settle_all`."""
        self.exchange, self.follow = exchange, follow
        self._directory, self._routes = directory, routes
        self._lock = threading.Lock()
        self._last: dict[tuple[int, int], tuple[Name, Name | None]] = {}
        """(client, server) → the last push sent there, and the one before it."""
        self._open: dict[tuple[int, int], set[Name]] = {}
        """(client, server) → pushes without an answer yet."""
        self._under_way: dict[int, PendingPush] = {}
        """All of them, in the order in which they were sent."""
        self._scales: dict[str, float] = {}
        """Table → the scale of its last push, which the next one's mostly is as well."""
        self._unsettled: OrderedDict[tuple[int, Name], tuple[int, dict[int, int]]] = OrderedDict()

    def submit(self, push: PushRequest) -> PendingPush:
        """Sends one message to each server that has a share; a push that merges with others, or has no ids, also where
        there is none."""
        name = (push.epoch, push.seq)
        placement = self._routes.placement
        shares = self._router.divide(push.ids)
        if push.merge > 1 or not shares:
            shares = _with_empty(shares, self._routes.owning if push.merge > 1 else self._routes.owning[:1])
        tables = self._directory.tables
        whole = all(order is None for share in shares for order in share.orders)
        if not whole:
            # Before they are divided, so that the division changes no bit.
            self._scales |= {
                n: scale_for(tables[self._directory.numbers[n]].wire, g, LEAST_GRADIENT_SCALE)
                for n, g in push.gradients.items()
            }
        messages = [self._message(push, share, None if whole else self._scales) for share in shares]
        number, requests = self._unsettled.pop((push.client, name), (placement.number, {}))
        if number != placement.number:
            raise ServerLost(
                f"push (epoch {push.epoch}, seq {push.seq}) of client {push.client} failed, and partitions have moved "
                "since: which of its gradients were applied is not known; go back to the last checkpoint"
            )
        pieces = []
        for share, message in zip(shares, messages, strict=True):
            previous = self._enter(push.client, share.server, name)
            request = requests.get(share.server, 0)
            call = self.exchange.send(share.server, Push(**message, previous=previous, request=request))  # type: ignore[arg-type]
            pieces.append(_Piece(push, share, call, placement))
        pending = PendingPush(self, push, pieces)
        with self._lock:
            self._under_way[id(pending)] = pending
        return pending

    @property
    def _router(self) -> Router:
        return self._routes.router

    def settle_all(self) -> None:
        """Has every push that was sent come to its end, in order: what moved meanwhile is divided anew. From then on no
        push needs to wait for one before it."""
        with self._lock:
            under_way = list(self._under_way.values())
        for pending in under_way:
            pending.resolve()
        with self._lock:
            self._last.clear()

    def divide_again(self, pieces: Sequence[_Piece], moved: Moved) -> list[_Piece]:
        """Sends what some servers did not take to those that own its rows now. A part of a merged step goes to all that
        have a partition which these had, also where it is empty: each waits for one of every client."""
        if self._routes.follow(moved):
            self.exchange.reach(moved.number, moved.addresses)
        placement = self._routes.placement
        rest = _joined(pieces)
        shares = self._router.divide(rest.ids)
        covered = {placement.owners[p] for piece in pieces for p in piece.placement.of(piece.share.server)}
        if rest.merge > 1 or not shares:
            shares = _with_empty(shares, sorted(covered) if rest.merge > 1 else sorted(covered)[:1])
        scales: dict[str, float] = {}
        for piece in pieces:
            assert isinstance(piece.call.message, Push)
            scales |= {n: s.scale for n, s in zip(piece.share.names, piece.call.message.sections, strict=True)}
        sent = []
        for share in shares:
            self._enter(rest.client, share.server, (rest.epoch, rest.seq))
            # Who sends it waits for what came before, so it need not name that.
            message = Push(**self._message(rest, share, scales))  # type: ignore[arg-type]
            sent.append(_Piece(rest, share, self.exchange.send(share.server, message), placement))
        return sent

    def _message(self, push: PushRequest, share: Share, scales: Mapping[str, float] | None) -> dict[str, object]:
        """`scales`: by table, of fp16; None: the share is the whole push, and they follow from it."""
        tables = self._directory.tables
        sections = tuple(
            Section(k, rows, tables[k].dim, tables[k].wire, 1.0 if scales is None else scales[n])
            for k, rows, n in zip(share.numbers, share.rows, share.names, strict=True)
        )
        rows = [push.gradients[n] for n in share.names]
        if scales is None:
            guesses = [self._scales.get(n, 1.0) for n in share.names]
            sections, gradients = pack_fitted(sections, rows, LEAST_GRADIENT_SCALE, guesses)
            self._scales |= {n: s.scale for n, s in zip(share.names, sections, strict=True)}
        else:
            gradients = pack(sections, rows, share.orders)
        return {
            "client": push.client,
            "epoch": push.epoch,
            "seq": push.seq,
            "sections": sections,
            "ids": share.ids,
            "gradients": gradients,
            "versions": _versions(push, share),
            "merge": push.merge,
            "lr_factor": push.lr_factor,
            "pulled": _pulled(push, share),
            "placement": self._routes.number,
        }

    def _enter(self, client: int, server: int, name: Name) -> Name | None:
        """Notes that a push is sent to a server; returns the one before it."""
        with self._lock:
            self._open.setdefault((client, server), set()).add(name)
            last = self._last.get((client, server))
            if last is None or name > last[0]:
                self._last[client, server] = (name, None if last is None else last[0])
                return None if last is None else last[0]
            return last[1] if name == last[0] else None

    def settled(self, push: PendingPush, *, failed: bool) -> None:
        """Notes that a push has been answered everywhere, or has failed somewhere."""
        with self._lock:
            self._under_way.pop(id(push), None)
            for call in push.calls:
                key = (push.client, call.server)
                self._open.get(key, set()).discard(push.name)
                last = self._last.get(key)
                if call.error is not None and last is not None and last[0] == push.name:
                    # It may never have come there: the next one must not wait for it.
                    if last[1] is None:
                        del self._last[key]
                    else:
                        self._last[key] = (last[1], None)
            if failed:
                # A request that was refused is over; one without an answer may still be done, or be done already.
                numbers = {c.server: c.message.request for c in push.calls if _may_be_done(c)}
                self._unsettled[push.client, push.name] = (self._routes.number, numbers)
                if len(self._unsettled) > UNSETTLED_KEPT:
                    self._unsettled.popitem(last=False)

    def unanswered(self, client: int) -> dict[int, Name]:
        """Server → the client's last push that has been sent there and not answered yet."""
        with self._lock:
            return {server: max(names) for (c, server), names in self._open.items() if c == client and names}

    def forget(self) -> None:
        """The servers were told anew which pushes count as applied: what went before does not matter."""
        with self._lock:
            self._last.clear()
            self._unsettled.clear()


def _with_empty(shares: Sequence[Share], servers: Sequence[int]) -> list[Share]:
    """The shares, and an empty one for each of these servers that has none."""
    there = {s.server: s for s in shares}
    return [there.get(s) or Share(s, (), (), (), _NO_IDS, ()) for s in sorted({*there, *servers})]


def _joined(pieces: Sequence[_Piece]) -> PushRequest:
    """The parts of a push that are to be divided anew, as one."""
    ids: dict[str, list[NDArray[np.uint64]]] = {}
    gradients: dict[str, list[NDArray[np.float32]]] = {}
    versions: dict[str, list[NDArray[np.uint8]]] = {}
    for piece in pieces:
        push = piece.push
        for name, order in zip(piece.share.names, piece.share.orders, strict=True):
            rows = slice(None) if order is None else order
            ids.setdefault(name, []).append(push.ids[name][rows])
            gradients.setdefault(name, []).append(push.gradients[name][rows])
            if push.versions is not None:
                versions.setdefault(name, []).append(push.versions[name][rows])
    first = pieces[0].push
    return replace(
        first,
        ids={n: np.concatenate(x) for n, x in ids.items()},
        gradients={n: np.concatenate(x) for n, x in gradients.items()},
        versions=None if first.versions is None else {n: np.concatenate(x) for n, x in versions.items()},
        hints=None,
    )


def _may_be_done(call: Call) -> bool:
    return call.error is None or isinstance(call.error, ServerUnreachable)


def _versions(push: PushRequest, share: Share) -> NDArray[np.uint8] | None:
    if push.versions is None:
        return None
    if not share.names:
        return np.empty(0, np.uint8)
    if share.orders[0] is None:
        return joined([push.versions[n] for n in share.names])
    out = np.empty(share.ids.size, np.uint8)
    at = 0
    for n, order in zip(share.names, share.orders, strict=True):
        assert order is not None
        gather(push.versions[n], order, out[at : at + order.size])
        at += order.size
    return out


def _pulled(push: PushRequest, share: Share) -> int:
    """The number of the pull that this push follows, from the hints that pull gave; 0: not known."""
    hints = push.hints
    if not hints or not share.names or share.names[0] not in hints:
        return 0
    numbers = hints[share.names[0]]
    if numbers.dtype != np.uint32 or numbers.size < 2 * (share.server + 1) or not numbers.flags.c_contiguous:
        return 0
    return int(numbers.view(np.uint64)[share.server])
