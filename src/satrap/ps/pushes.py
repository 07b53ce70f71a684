"""Every push once, none left out, and the pushes of one step together.

A push is named (client, epoch, seq). A client's names rise, with gaps where it had nothing to send, so a number alone
does not tell whether something was lost on the way. Over a network a push therefore also says which of its client's
pushes went before it *to this service*:

    name not newer than the last received   it was received before: a duplicate
    previous newer than the last received   one between them is still missing: refused for now, to be sent again
    else                                    the next one

So several pushes may be under way at once and come, and come again, in any order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from satrap.errors import StoreError
from satrap.ps.merge import apply_merged
from satrap.ps.protocol import Ack, PushRequest, Refused
from satrap.store import Store

Name = tuple[int, int]
"""(epoch, seq) of a client's push."""

KEPT_ACKS = 128
"""Acknowledgements kept a client, to be given again to a request that is sent again; and pushes held a client. More
than a client has under way."""


class MissingPush(Exception):  # noqa: N818
    """A push came before the one that precedes it."""

    def __init__(self, previous: Name, last: Name | None) -> None:
        super().__init__(f"push {previous} has not come yet; the last one that came is {last}")
        self.previous, self.last = previous, last


@dataclass(slots=True)
class _Step:
    """The pushes of one (epoch, seq) that wait for the others, each with the request that brought it."""

    merge: int
    lr_factor: float
    pushes: dict[int, tuple[PushRequest, int | None]] = field(default_factory=dict)


class Pushes:
    """Decides about each push and applies it. Not thread-safe: its owner calls it under a lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._applied: dict[int, Name] = {}
        self._received: dict[int, Name] = {}
        """Applied or held."""
        self._steps: dict[Name, _Step] = {}
        self._acks: dict[int, OrderedDict[Name, tuple[int, Ack]]] = {}

    def offer(self, push: PushRequest, previous: Name | None = None, request: int | None = None) -> Mapping[int, Ack]:
        """Applies a push, or holds it until its step is whole. Returns the acknowledgements, by client, of all pushes
        that are settled by this one: none while it is held, all W when it is the last of its step.

        `previous`: the client's push before it, None where the client does not say. `request`: which request carries
        it; the same one coming again gets the acknowledgement of the first time, another one a duplicate's.

        Raises:
            MissingPush: `previous` has not come yet; nothing changed.
            StoreError: the push is malformed, or does not fit the others of its step; nothing changed.
        """
        name, last = (push.epoch, push.seq), self._received.get(push.client)
        if last is not None and name <= last:
            return self._again(push, name, request)
        if previous is not None and (last is None or previous > last):
            raise MissingPush(previous, last)
        if push.merge != 1:
            return self._hold(push, name, request)
        ack = _apply(self._store, push)
        self._settle(push.client, name, request, ack)
        return {push.client: ack}

    def _again(self, push: PushRequest, name: Name, request: int | None) -> Mapping[int, Ack]:
        if request is not None:
            kept = self._acks.get(push.client)
            if kept is not None and name in kept and kept[name][0] == request:
                return {push.client: kept[name][1]}
            step = self._steps.get(name)
            if step is not None and push.client in step.pushes and step.pushes[push.client][1] == request:
                return {}
        return {push.client: Ack(duplicate=True)}

    def _hold(self, push: PushRequest, name: Name, request: int | None) -> Mapping[int, Ack]:
        if push.merge < 1:
            raise StoreError(f"a push merges 1 or more, got {push.merge}")
        check_push(self._store, push)
        what = f"push (epoch {push.epoch}, seq {push.seq}) of client {push.client}"
        step = self._steps.get(name) or _Step(push.merge, push.lr_factor)
        if (push.merge, push.lr_factor) != (step.merge, step.lr_factor):
            raise StoreError(
                f"{what} merges {push.merge} at lr_factor {push.lr_factor}; "
                f"the others of its step merge {step.merge} at {step.lr_factor}"
            )
        if len(step.pushes) + 1 < step.merge:
            if sum(push.client in s.pushes for s in self._steps.values()) >= KEPT_ACKS:
                raise StoreError(f"{what}: {KEPT_ACKS} of its pushes already wait for those of other clients")
            step.pushes[push.client] = (push, request)
            self._steps[name] = step
            self._received[push.client] = name
            return {}
        whole = {**step.pushes, push.client: (push, request)}
        order = sorted(whole)
        acks = dict(zip(order, apply_merged(self._store, [whole[c][0] for c in order]), strict=True))
        self._steps.pop(name, None)
        for client, ack in acks.items():
            self._settle(client, name, whole[client][1], ack)
        return acks

    def _settle(self, client: int, name: Name, request: int | None, ack: Ack) -> None:
        self._applied[client] = name
        # Pushes of later steps of this client may be held already.
        self._received[client] = max(name, self._received.get(client, name))
        if request is not None:
            kept = self._acks.setdefault(client, OrderedDict())
            kept[name] = (request, ack)
            if len(kept) > KEPT_ACKS:
                kept.popitem(last=False)

    def clients(self) -> dict[int, Name]:
        """Client → its last push that was applied."""
        return dict(self._applied)

    def received(self, client: int) -> Name | None:
        """The last push of a client that was applied or is held."""
        return self._received.get(client)

    def reset(self, clients: Mapping[int, Name]) -> list[tuple[int, Name]]:
        """Sets what was applied last, and drops the pushes that are held: returns their clients and names."""
        dropped = [(client, name) for name, step in self._steps.items() for client in step.pushes]
        self._steps.clear()
        self._acks.clear()
        self._applied = dict(clients)
        self._received = dict(clients)
        return dropped

    @property
    def held(self) -> int:
        """Pushes that wait for others of their step."""
        return sum(len(s.pushes) for s in self._steps.values())

    def step_of(self, name: Name) -> tuple[int, int]:
        """(pushes that are there, pushes of the step); (0, 0) where no push of this name is held."""
        step = self._steps.get(name)
        return (0, 0) if step is None else (len(step.pushes), step.merge)


def check_push(store: Store, push: PushRequest) -> None:
    """Raises StoreError where applying would, and changes nothing."""
    store.check_push(
        dict(push.ids),
        dict(push.gradients),
        None if push.versions is None else dict(push.versions),
        None if push.hints is None else dict(push.hints),
        lr_factor=push.lr_factor,
        distinct=push.distinct,
    )


def _apply(store: Store, push: PushRequest) -> Ack:
    applied, missing, not_finite, staleness = store.push_many(
        dict(push.ids),
        dict(push.gradients),
        None if push.versions is None else dict(push.versions),
        None if push.hints is None else dict(push.hints),
        lr_factor=push.lr_factor,
        distinct=push.distinct,
    )
    refused = {Refused.MISSING_ROW: missing, Refused.NOT_FINITE: not_finite}
    return Ack(applied=applied, refused={k: n for k, n in refused.items() if n}, staleness=staleness)
