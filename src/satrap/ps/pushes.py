"""Every push once, none left out, and the pushes of one step together.

A push is named (client, epoch, seq). A client's names rise, with gaps where it had nothing to send, so a number alone
does not tell whether something was lost on the way. Over a network a push therefore also says which of its client's
pushes went before it *to this service*:

    name not newer than the last received   it was received before: a duplicate
    previous newer than the last received   one between them is still missing: refused for now, to be sent again
    else                                    the next one

So several pushes may be under way at once and come, and come again, in any order.

A partition that comes from another server brings its own filter: each client's last push in it. Where that is older
than the client's last push here, the partition is *late*: parts of pushes in between, which the other server had not
applied, still come, under the names that they have. With a client's first newer push nothing of it is late any more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from satrap.errors import StoreError
from satrap.ps.heat import Heat, room
from satrap.ps.merge import apply_merged
from satrap.ps.protocol import Ack, PushRequest, Refused
from satrap.store import NOT_ADMITTED, Store

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
        self.store = store
        self.heat: Heat | None = None
        """Told of every step, where it is wanted."""
        self._applied: dict[int, Name] = {}
        self._received: dict[int, Name] = {}
        """Applied or held."""
        self._late: dict[int, dict[int, Name | None]] = {}
        """Client → partition → its last push in it, where that is older than its last push here; None: no push."""
        self._elsewhere: dict[int, Name] = {}
        """Client → its last push in partitions that came here."""
        self._steps: dict[Name, _Step] = {}
        self._acks: dict[int, OrderedDict[Name, tuple[int, Ack]]] = {}

    def offer(
        self,
        push: PushRequest,
        previous: Name | None = None,
        request: int | None = None,
        before: Callable[[], None] | None = None,
    ) -> Mapping[int, Ack]:
        """Applies a push, or holds it until its step is whole. Returns the acknowledgements, by client, of all pushes
        that are settled by this one: none while it is held, all W when it is the last of its step.

        `previous`: the client's push before it, None where the client does not say. `request`: which request carries
        it; the same one coming again gets the acknowledgement of the first time, another one a duplicate's.
        `before`: called once it is certain that the push will be applied or held, before anything changes; what it
        raises leaves all as it was.

        Raises:
            MissingPush: `previous` has not come yet; nothing changed.
            StoreError: the push is malformed, or does not fit the others of its step; nothing changed.
        """
        name, last = (push.epoch, push.seq), self._received.get(push.client)
        if last is not None and name <= last:
            if not self._fits_late(push, name):
                return self._again(push, name, request)
        elif previous is not None and (last is None or previous > last):
            raise MissingPush(previous, last)
        if push.merge != 1:
            return self._hold(push, name, request, before)
        if before is not None:
            check_push(self.store, push)
            before()
        ack = _apply(self.store, push, self.heat, checked=before is not None)
        self._settle(push.client, name, request, ack)
        return {push.client: ack}

    def _again(self, push: PushRequest, name: Name, request: int | None) -> Mapping[int, Ack]:
        if request is not None:
            kept = self.kept(push.client, name, request)
            if kept is not None:
                return {push.client: kept}
            step = self._steps.get(name)
            if step is not None and push.client in step.pushes and step.pushes[push.client][1] == request:
                return {}
        return {push.client: Ack(duplicate=True)}

    def _hold(
        self, push: PushRequest, name: Name, request: int | None, before: Callable[[], None] | None
    ) -> Mapping[int, Ack]:
        if push.merge < 1:
            raise StoreError(f"a push merges 1 or more, got {push.merge}")
        check_push(self.store, push)
        what = f"push (epoch {push.epoch}, seq {push.seq}) of client {push.client}"
        step = self._steps.get(name) or _Step(push.merge, push.lr_factor)
        if (push.merge, push.lr_factor) != (step.merge, step.lr_factor):
            raise StoreError(
                f"{what} merges {push.merge} at lr_factor {push.lr_factor}; "
                f"the others of its step merge {step.merge} at {step.lr_factor}"
            )
        held = len(step.pushes) + 1 < step.merge
        if held and sum(push.client in s.pushes for s in self._steps.values()) >= KEPT_ACKS:
            raise StoreError(f"{what}: {KEPT_ACKS} of its pushes already wait for those of other clients")
        if before is not None:
            before()
        if held:
            step.pushes[push.client] = (push, request)
            self._steps[name] = step
            self._received[push.client] = max(name, self._received.get(push.client, name))
            return {}
        whole = {**step.pushes, push.client: (push, request)}
        order = sorted(whole)
        acks = dict(zip(order, apply_merged(self.store, [whole[c][0] for c in order], self.heat), strict=True))
        self._steps.pop(name, None)
        for client, ack in acks.items():
            self._settle(client, name, whole[client][1], ack)
        return acks

    def _settle(self, client: int, name: Name, request: int | None, ack: Ack) -> None:
        last = self._applied.get(client)
        if last is None or name > last:
            self._applied[client] = name
            self._late.pop(client, None)
        else:
            late = {p: max(name, x) if x is not None else name for p, x in self._late.get(client, {}).items()}
            self._late[client] = {p: x for p, x in late.items() if x < last}
        # Pushes of later steps of this client may be held already.
        self._received[client] = max(name, self._received.get(client, name))
        if request is not None:
            self.keep_ack(client, name, request, ack)

    def _fits_late(self, push: PushRequest, name: Name) -> bool:
        """Whether all rows of an older push are of partitions that lack it."""
        lacking = [p for p, last in self._late.get(push.client, {}).items() if last is None or last < name]
        if not lacking or (name in self._steps and push.client in self._steps[name].pushes):
            return False
        return all(np.isin(self.store.partitions_of(ids), lacking).all() for ids in push.ids.values())

    def hand_back(self) -> list[tuple[int, Name, int | None]]:
        """Drops the pushes that wait for others of their step, as if they had never come: clients, names, requests."""
        back = [(c, name, request) for name, s in self._steps.items() for c, (_, request) in s.pushes.items()]
        self._steps.clear()
        self._received = dict(self._applied)
        return back

    def last_in(self, partition: int) -> dict[int, Name]:
        """Client → its last push of which the rows in a partition were applied."""
        last = {c: self._late.get(c, {}).get(partition, name) for c, name in self._applied.items()}
        return {c: name for c, name in last.items() if name is not None}

    def take_in(self, partition: int, clients: Mapping[int, Name]) -> None:
        """A partition is here from now on, in which these pushes were the last."""
        for client, name in self._applied.items():
            last = clients.get(client)
            if last is None or last < name:
                self._late.setdefault(client, {})[partition] = last
        for client, name in clients.items():
            self._elsewhere[client] = max(name, self._elsewhere.get(client, name))

    @property
    def late(self) -> set[int]:
        """Partitions of which parts of older pushes may still come."""
        return {p for late in self._late.values() for p in late}

    @property
    def elsewhere(self) -> dict[int, Name]:
        """Client → its last push that other servers had applied to partitions which are here now."""
        return dict(self._elsewhere)

    @elsewhere.setter
    def elsewhere(self, names: Mapping[int, Name]) -> None:
        self._elsewhere = dict(names)

    def newest(self) -> dict[int, Name]:
        """Client → its last push that was applied to what is here now, wherever that was then."""
        return {c: max(self._applied.get(c, n), n) for c, n in {**self._applied, **self._elsewhere}.items()}

    def keep_ack(self, client: int, name: Name, request: int, ack: Ack) -> None:
        """Has this request get this acknowledgement when it comes again."""
        kept = self._acks.setdefault(client, OrderedDict())
        kept[name] = (request, ack)
        if len(kept) > KEPT_ACKS:
            kept.popitem(last=False)

    def kept(self, client: int, name: Name, request: int) -> Ack | None:
        """The acknowledgement that this request was given, where it is still kept."""
        kept = self._acks.get(client)
        there = None if kept is None else kept.get(name)
        return there[1] if there is not None and there[0] == request else None

    def kept_acks(self) -> Iterator[tuple[int, Name, int, Ack]]:
        """Client, name, request and acknowledgement of what may be asked for again."""
        for client, kept in self._acks.items():
            for name, (request, ack) in kept.items():
                yield client, name, request, ack

    def held_pushes(self) -> list[tuple[PushRequest, int | None]]:
        """The pushes that wait for others of their step, with their requests, in the order of their names."""
        return [self._steps[name].pushes[c] for name in sorted(self._steps) for c in sorted(self._steps[name].pushes)]

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
        self._late.clear()
        self._elsewhere.clear()
        self._applied = dict(clients)
        self._received = dict(clients)
        return dropped

    def restore(self, clients: Mapping[int, Name], held: Iterable[tuple[PushRequest, int | None]]) -> None:
        """`reset` to what was applied, with these pushes waiting for others."""
        self.reset(clients)
        for push, request in held:
            name = (push.epoch, push.seq)
            step = self._steps.setdefault(name, _Step(push.merge, push.lr_factor))
            step.pushes[push.client] = (push, request)
            self._received[push.client] = max(name, self._received.get(push.client, name))

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


def _apply(store: Store, push: PushRequest, heat: Heat | None, *, checked: bool) -> Ack:
    counted = any(t in store.admitting for t in push.ids)
    flat, outcomes = room(push.ids) if heat is not None or counted else (None, None)
    applied, missing, not_finite, staleness = store.push_many(
        dict(push.ids),
        dict(push.gradients),
        None if push.versions is None else dict(push.versions),
        None if push.hints is None else dict(push.hints),
        lr_factor=push.lr_factor,
        distinct=push.distinct,
        checked=checked,
        outcomes=outcomes,
        step=push.seq,
    )
    if heat is not None and flat is not None and outcomes is not None:
        if heat.due and push.versions is not None:
            for table, ids in push.ids.items():
                heat.measured(table, ids, push.versions[table], outcomes[table], table in store.bounded)
        heat.stepped(push.ids, flat)
    waiting = int(np.count_nonzero(flat == NOT_ADMITTED)) if counted and flat is not None else 0
    refused = {
        Refused.MISSING_ROW: missing - waiting,
        Refused.NOT_FINITE: not_finite,
        Refused.NOT_ADMITTED: waiting,
    }
    return Ack(applied=applied, refused={k: n for k, n in refused.items() if n}, staleness=staleness)
