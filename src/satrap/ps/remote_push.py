"""Pushes to S servers. U unique ids of a table, D its dimension."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satrap.errors import ServerLost, ServerUnreachable, WireError
from satrap.ps.exchange import Call, Exchange
from satrap.ps.packing import LEAST_GRADIENT_SCALE, Directory, joined, pack, scale_for
from satrap.ps.placement import Placement
from satrap.ps.protocol import Ack, PushRequest, Refused
from satrap.ps.pushes import Name
from satrap.ps.routing import Router, Share
from satrap.store import gather
from satrap.wire import AckReply, Push, Section

UNSETTLED_KEPT = 256
"""Pushes that failed, kept so that a second try is known to the servers as the same request."""

_NO_IDS = np.empty(0, np.uint64)


@dataclass(slots=True)
class PendingPush:
    """A push under way: one call a server."""

    pushing: Pushing
    client: int
    name: Name
    shares: Sequence[Share]
    calls: Sequence[Call]

    def result(self) -> Ack:
        """What became of it on all servers. Raises ServiceError and its kinds, and StoreError, when all have answered
        or failed."""
        answers, errors = [], []
        for call in self.calls:
            try:
                answers.append(self.pushing.exchange.wait(call))
            except Exception as e:
                errors.append(e)
        self.pushing.settled(self, failed=bool(errors))
        if errors:
            raise next((e for e in errors if isinstance(e, ServerLost)), errors[0])
        total, repeated = Ack(duplicate=True), 0
        for share, reply in zip(self.shares, answers, strict=True):
            if not isinstance(reply, AckReply):
                raise WireError(
                    f"{self.pushing.exchange.where(share.server)} answered a push with {type(reply).__name__}"
                )
            if reply.duplicate:
                repeated += share.ids.size
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

    def __init__(self, exchange: Exchange, directory: Directory, placement: Placement) -> None:
        self.exchange = exchange
        self._directory, self._placement = directory, placement
        self._router = Router(directory, placement)
        self._lock = threading.Lock()
        self._last: dict[tuple[int, int], tuple[Name, Name | None]] = {}
        """(client, server) → the last push sent there, and the one before it."""
        self._open: dict[tuple[int, int], set[Name]] = {}
        """(client, server) → pushes without an answer yet."""
        self._unsettled: OrderedDict[tuple[int, Name], dict[int, int]] = OrderedDict()

    def submit(self, push: PushRequest) -> PendingPush:
        """Sends one message to each server that has a share; a push that merges with others, or has no ids, also where
        there is none."""
        name = (push.epoch, push.seq)
        shares = self._router.divide(push.ids)
        if push.merge > 1 or not shares:
            wanted = range(self._placement.servers) if push.merge > 1 else range(1)
            there = {s.server: s for s in shares}
            shares = [there.get(s) or Share(s, (), (), (), _NO_IDS, ()) for s in wanted]
        tables = self._directory.tables
        scales = {
            n: scale_for(tables[self._directory.numbers[n]].wire, g, LEAST_GRADIENT_SCALE)
            for n, g in push.gradients.items()
        }
        messages = [self._message(push, share, scales) for share in shares]
        requests = self._unsettled.pop((push.client, name), {})
        calls = []
        for share, message in zip(shares, messages, strict=True):
            previous = self._enter(push.client, share.server, name)
            calls.append(
                self.exchange.send(
                    share.server,
                    Push(**message, previous=previous, request=requests.get(share.server, 0)),  # type: ignore[arg-type]
                )
            )
        return PendingPush(self, push.client, name, shares, calls)

    def _message(self, push: PushRequest, share: Share, scales: Mapping[str, float]) -> dict[str, object]:
        tables = self._directory.tables
        sections = tuple(
            Section(k, rows, tables[k].dim, tables[k].wire, scales[n])
            for k, rows, n in zip(share.numbers, share.rows, share.names, strict=True)
        )
        return {
            "client": push.client,
            "epoch": push.epoch,
            "seq": push.seq,
            "sections": sections,
            "ids": share.ids,
            "gradients": pack(sections, [push.gradients[n] for n in share.names], share.orders),
            "versions": _versions(push, share),
            "merge": push.merge,
            "lr_factor": push.lr_factor,
            "pulled": _pulled(push, share),
            "placement": self._placement.epoch,
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
                self._unsettled[push.client, push.name] = numbers
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
