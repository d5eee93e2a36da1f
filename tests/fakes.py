"""The world in memory: a clock that moves when told, tables, a secret, BLiP, dead letters.

What holds state here behaves as its adapter does: `tests/integration/test_adapters.py` holds both
to one suite, and compares their items. Items have the attributes that the tables have.
"""

import copy
import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from threading import RLock
from typing import Any
from uuid import uuid4

from notifier.aws.identities import forgotten_key
from notifier.bots import Bot, Bots, BrokenBot, parse_bots
from notifier.delivery import Delivery, Policy, Verdict
from notifier.failures import Failure, Reason
from notifier.lifecycle import UNDELIVERED, Status, before
from notifier.phone import mask
from notifier.receipts import Receipts
from notifier.records import (
    Account,
    BotState,
    Claim,
    ClaimLost,
    DeadLetter,
    Held,
    Identity,
    LookUpLease,
    Notification,
    Page,
    Plan,
    QueuedRequest,
    Receipt,
    Reservation,
    Standing,
    StatusEvent,
)
from notifier.request import Template, ledger_key, parse

type Item = dict[str, Any]
type Recipient = tuple[str, str]

# The key of the bots below: base64 of bot:secret.
KEY = "Key Ym90OnNlY3JldA=="
OTHER_KEY = "Key Ym90Om90aGVy"


class Clock:
    """Stands still until somebody sleeps; sleepers in several threads sleep at the same time."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._lock = RLock()
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            until = self._now + seconds
            with self._lock:
                self.slept.append(seconds)
                self._now = max(self._now, until)

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds


class OneAfterTheOther(Executor):
    """Runs what is submitted at once, in this thread: what happens has one order."""

    def submit[**P, R](
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]:
        future: Future[R] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - as every executor does
            future.set_exception(error)
        return future


class FakeTable:
    """Items by key; `update` is atomic, as DynamoDB's is."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.writes = 0
        self._lock = RLock()

    def get(self, key: str) -> Item:
        with self._lock:
            return copy.deepcopy(self.items.get(key, {}))

    def update(
        self, key: str, condition: Callable[[Item], bool], change: Callable[[Item], None]
    ) -> tuple[bool, Item]:
        """Write if the condition holds; the item as it stands now, or as it stood in the way."""
        with self._lock:
            self.writes += 1
            item = self.get(key)
            if not condition(item):
                return False, item
            item["key"] = key
            change(item)
            self.items[key] = item
            return True, copy.deepcopy(item)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


POLLS = ("poll_bot", "poll_at", "poll_since")


class FakeLedger:
    """See `notifier.aws.ledger`. `page_size` is how many items one page has."""

    page_size = 3

    def __init__(self, table: FakeTable, now: Callable[[], float]) -> None:
        self._table = table
        self._now = now

    def read(self, key: str) -> Standing | None:
        item = self._table.get(key)
        return None if not item or "forgotten" in item else _standing(item)

    def account(self, bot: str, notification_id: str) -> Account | None:
        item = self._table.get(ledger_key(bot, notification_id))
        if not item or item["expires_at"] <= round(self._now()):
            return None
        return _account(bot, notification_id, item)

    def cancel(self, bot: str, notification_id: str) -> Account:
        now = self._now()

        def free(item: Item) -> bool:
            if not item:
                return True
            if item["status"] == Status.CANCELLED:
                return False
            if item["expires_at"] <= round(now):
                return True
            match item["status"]:
                case Status.CLAIMED:
                    return int(item["lease_until"]) < _ms(now)
                case Status.FAILED:
                    return bool(item.get("postponed") == item["generation"])
                case status:
                    return bool(status == Status.RETRYING)

        def take_back(item: Item) -> None:
            for name in (
                "token", "lease_until", "request", "reason", "code", "in_flight_until", "postponed",
            ):  # fmt: skip
                item.pop(name, None)
            item |= {"id": notification_id, "bot": bot, "expires_at": round(now) + 45 * 86_400}
            for name, value in (
                ("attempts", 0), ("metadata", {}), ("generation", 0), ("created_at", _ms(now)),
            ):  # fmt: skip
                item.setdefault(name, value)
            self._event(item, Status.CANCELLED, item["generation"])

        _, item = self._table.update(ledger_key(bot, notification_id), free, take_back)
        return _account(bot, notification_id, item)

    def held(self, recipient: str, after: str | None) -> Page:
        keys = sorted(key for key in self._table.items if after is None or key > after)
        some = keys[: self.page_size]
        items = [self._table.items[key] for key in some]
        held = [
            Held(item["key"], item["bot"], item.get("request", ""))
            for item in items
            if item.get("recipient") == mask(recipient)
        ]
        return Page(held, len(some), some[-1] if len(keys) > len(some) else None)

    def forget(self, key: str) -> None:
        now = self._now()

        def forget(item: Item) -> None:
            generation = item["generation"]
            item.clear()
            item |= {
                "key": key,
                "status": "cancelled",
                "forgotten": True,
                "generation": generation,
                "updated_at": _ms(now),
                "expires_at": round(now) + 45 * 86_400,
            }

        self._table.update(key, bool, forget)

    def claim(
        self, notification: Notification, status: Status, lease_until: float
    ) -> Claim | Standing:
        now = self._now()
        token = uuid4().hex
        asked = notification.queued.generation
        first = (asked or 0) + 1
        expires_at = round(now) + 45 * 86_400

        def free(item: Item) -> bool:
            if not item:
                return True
            if item["expires_at"] <= round(now):
                return False
            if item.get("content_hash") != notification.content_hash:
                return False
            if item["status"] == Status.CLAIMED:
                return int(item["lease_until"]) < _ms(now)
            return bool(item["status"] == Status.RETRYING)

        def take(item: Item) -> None:
            item |= {
                "status": status.value,
                "token": token,
                "lease_until": _ms(lease_until),
                "updated_at": _ms(now),
                "id": notification.request.id,
                "bot": notification.request.bot,
                "content_hash": notification.content_hash,
                "request": notification.queued.body,
                "template": notification.request.template.name,
                "recipient": mask(notification.request.to),
                "metadata": notification.request.metadata,
                "correlation_id": notification.request.correlation_id,
                "attempts": item.get("attempts", 0) + 1,
            }
            item.setdefault("generation", first)
            item.setdefault("redrives", notification.queued.redrives)
            item.setdefault("created_at", _ms(now))
            item.setdefault("expires_at", expires_at)

        def restart(item: Item) -> None:
            for name in ("reason", "code", "in_flight_until", "denials", *POLLS):
                item.pop(name, None)
            take(item)
            item |= {"generation": first, "attempts": 1, "expires_at": expires_at}
            item["redrives"] = notification.queued.redrives

        taken, found = self._table.update(notification.key, free, take)
        if not taken:
            lapsed = found["expires_at"] <= round(now) and found["status"] != Status.CANCELLED
            redriven = found["status"] in UNDELIVERED and found["generation"] == asked
            if lapsed or redriven:
                as_found = found
                taken, found = self._table.update(
                    notification.key, lambda item: item == as_found, restart
                )
        return _claim(found) if taken else _standing(found)

    def start_sending(self, claim: Claim, lease_until: float) -> Claim:
        def start(item: Item) -> None:
            item |= {
                "status": "sending",
                "lease_until": _ms(lease_until),
                "updated_at": _ms(self._now()),
            }

        def ours(item: Item) -> bool:
            return item.get("token") == claim.token and item["status"] in {"claimed", "sending"}

        held, found = self._table.update(claim.key, ours, start)
        if not held:
            raise ClaimLost(claim.key, forgotten="forgotten" in found)
        return _claim(found)

    def settle_sent(self, claim: Claim, poll_at: float | None) -> None:
        def poll(item: Item) -> None:
            if poll_at is not None:
                item |= {"poll_bot": item["bot"], "poll_at": _ms(poll_at)}
                item["poll_since"] = _ms(self._now())

        self._settle(claim, Status.SENT, poll, held=False)

    def settle_unknown(self, claim: Claim) -> None:
        now = _ms(self._now())
        self._settle(claim, Status.UNKNOWN, lambda item: item.update(in_flight_until=now))

    def release(self, claim: Claim, *, attempted: bool) -> None:
        def give_back(item: Item) -> None:
            item["attempts"] -= int(not attempted)

        self._settle(claim, Status.RETRYING, give_back)

    def end(self, claim: Claim, status: Status, reason: Reason, code: int | None) -> None:
        facts = {"reason": reason.value, "code": code, "attempts": claim.attempts}
        self._settle(claim, status, lambda item: item.update(facts))

    def question(self, standing: Standing, lease_until: float) -> Claim | None:
        def open_question(item: Item) -> bool:
            return (
                item.get("generation") == standing.generation
                and item["status"] in {Status.UNKNOWN, Status.SENDING}
                and item.get("lease_until", 0) < _ms(self._now())
            )

        def take(item: Item) -> None:
            item |= {
                "status": "unknown",
                "token": uuid4().hex,
                "lease_until": _ms(lease_until),
                "in_flight_until": _ms(standing.in_flight_until),
                "updated_at": _ms(self._now()),
            }

        taken, item = self._table.update(standing.key, open_question, take)
        return _claim(item) if taken else None

    def deny(self, claim: Claim) -> None:
        def deny(item: Item) -> None:
            item["denials"] = item.get("denials", 0) + 1

        self._settle(claim, Status.RETRYING, deny)

    def put_back(self, claim: Claim) -> None:
        def let_go(item: Item) -> None:
            del item["token"], item["lease_until"]

        self._table.update(claim.key, lambda item: item.get("token") == claim.token, let_go)

    def advance(self, receipt: Receipt) -> bool | None:
        delivered = receipt.status in {Status.RECEIVED, Status.CONSUMED}
        over = ("request", "reason", "code", *POLLS)

        def news(item: Item) -> bool:
            current = item.get("generation") == receipt.generation
            if "forgotten" in item:
                return False
            return (current or delivered) and item.get("status") in before(receipt.status)

        def move(item: Item) -> None:
            self._event(item, receipt.status, receipt.generation)
            for name in ("token", "lease_until", *(over if delivered else ())):
                item.pop(name, None)

        moved, found = self._table.update(receipt.key, news, move)
        if not moved and found.get("generation", 0) > receipt.generation:
            event = [receipt.status.value, receipt.generation, _ms(self._now())]
            self._table.update(
                receipt.key,
                lambda item: 0 < len(item.get("timeline", ())) < 100,
                lambda item: item["timeline"].append(event),
            )
        return moved if found else None

    def fail(self, receipt: Receipt, reason: Reason, *, postponed: bool) -> bool:
        def news(item: Item) -> bool:
            current = item.get("generation") == receipt.generation
            return current and item["status"] in before(Status.FAILED)

        def move(item: Item) -> None:
            self._event(item, Status.FAILED, receipt.generation)
            for name in ("token", "lease_until", *POLLS):
                item.pop(name, None)
            item |= {"reason": reason.value, "code": receipt.code}
            if postponed:
                item["postponed"] = receipt.generation

        moved, _ = self._table.update(receipt.key, news, move)
        return moved

    def _settle(
        self,
        claim: Claim,
        status: Status,
        change: Callable[[Item], None],
        *,
        held: bool = True,
    ) -> None:
        def ours(item: Item) -> bool:
            if item.get("generation") != claim.generation:
                return False
            if held:
                return bool(item.get("token") == claim.token)
            return item["status"] in before(status)

        def settle(item: Item) -> None:
            self._event(item, status, claim.generation)
            change(item)
            item.pop("token", None)
            item.pop("lease_until", None)

        self._table.update(claim.key, ours, settle)

    def _event(self, item: Item, status: Status, generation: int) -> None:
        now = _ms(self._now())
        item |= {"status": status.value, "updated_at": now}
        item.setdefault("timeline", []).append([status.value, generation, now])


def _claim(item: Item) -> Claim:
    return Claim(
        key=item["key"],
        generation=item["generation"],
        attempts=item["attempts"],
        token=item["token"],
        status=Status(item["status"]),
        in_flight_until=item.get("in_flight_until", 0) / 1000,
        denials=item.get("denials", 0),
    )


def _standing(item: Item) -> Standing:
    lease_until = item.get("lease_until", 0) / 1000
    sending = item["status"] == Status.SENDING
    return Standing(
        key=item["key"],
        notification_id=item.get("id", ""),
        bot=item.get("bot", ""),
        status=Status(item["status"]),
        generation=item["generation"],
        content_hash=item.get("content_hash", ""),
        attempts=item.get("attempts", 0),
        lease_until=lease_until,
        in_flight_until=lease_until if sending else item.get("in_flight_until", 0) / 1000,
        template=item.get("template", ""),
        body=item.get("request", ""),
        reason=Reason(item["reason"]) if item.get("reason") else None,
        postponed=item.get("postponed", 0),
        redrives=item.get("redrives", 0),
        metadata=item.get("metadata", {}),
        forgotten="forgotten" in item,
        correlation_id=item.get("correlation_id"),
        sent_at=_sent_at(item),
    )


def _account(bot: str, notification_id: str, item: Item) -> Account:
    return Account(
        notification_id=notification_id,
        bot=bot,
        status=Status(item["status"]),
        generation=item["generation"],
        attempts=item.get("attempts", 0),
        timeline=tuple(
            (Status(status), generation, at / 1000)
            for status, generation, at in item.get("timeline", ())
        ),
        created_at=item["created_at"] / 1000 if "created_at" in item else None,
        updated_at=item["updated_at"] / 1000,
        template=item.get("template"),
        recipient=item.get("recipient"),
        reason=Reason(item["reason"]) if item.get("reason") else None,
        code=item.get("code"),
        metadata=item.get("metadata", {}),
        correlation_id=item.get("correlation_id"),
    )


def _sent_at(item: Item) -> float:
    sent = ["sent", item["generation"]]
    times: list[int] = [event[2] for event in item.get("timeline", ()) if event[:2] == sent]
    return sum(times) / 1000


class FakeIdentities:
    """See `notifier.aws.identities`."""

    def __init__(
        self,
        table: FakeTable,
        *,
        now: Callable[[], float],
        ttl_seconds: int = 518_400,
        negative_ttl_seconds: int = 86_400,
        uniform: Callable[[float, float], float] = max,
        memory_entries: int = 10_000,
    ) -> None:
        self._table = table
        self._now = now
        self._ttl_seconds = ttl_seconds
        self._negative_ttl_seconds = negative_ttl_seconds
        self._uniform = uniform
        self._memory_entries = memory_entries
        self._memory: OrderedDict[Recipient, tuple[float, Identity]] = OrderedDict()
        self.reads = 0

    def read(
        self, recipients: Iterable[Recipient], bots: Iterable[str]
    ) -> tuple[Mapping[Recipient, Identity], Mapping[str, BotState]]:
        self.reads += 1
        known: dict[Recipient, Identity] = {}
        for recipient in recipients:
            good_until, identity = self._memory.get(recipient, (0.0, Identity(None)))
            if good_until > self._now():
                known[recipient] = identity
            elif (found := self.get(recipient)) is not None:
                known[recipient] = found
            if mark := self._table.get(forgotten_key(recipient[1])):
                known[recipient] = Identity(None, forgotten_at=mark["forgotten_at"] / 1000)
        items = {bot: self._table.get(f"bot:{bot}") for bot in bots}
        states = {
            bot: BotState(
                shut_until=item.get("shut_until", 0) / 1000,
                broken=item.get("broken", ""),
                paused="paused" in item,
                failing=len(item.get("failing", ())),
                next_message_at=item.get("next_messages_at", 0) / 1e6,
            )
            for bot, item in items.items()
            if item
        }
        return known, states

    def get(self, recipient: Recipient) -> Identity | None:
        return self._good(recipient, self._table.get("/".join(recipient)))

    def lease(self, recipient: Recipient, seconds: float) -> LookUpLease | Identity | None:
        now = self._now()
        token = uuid4().hex

        def free(item: Item) -> bool:
            times = (item.get("good_until", 0) - 1, item.get("lease_until", 0))
            return all(time < _ms(now) for time in times)

        def take(item: Item) -> None:
            item |= {
                "token": token,
                "lease_until": _ms(now + seconds),
                "expires_at": round(now) + self._negative_ttl_seconds,
            }

        taken, item = self._table.update("/".join(recipient), free, take)
        return LookUpLease(recipient, token) if taken else self._good(recipient, item)

    def store(self, lease: LookUpLease, identity: Identity) -> None:
        ttl = self._ttl_seconds if identity.address is not None else self._negative_ttl_seconds
        good_until = self._now() + self._uniform(0.9 * ttl, ttl)

        def keep(item: Item) -> None:
            for name in ("token", "lease_until", "address", "code"):
                item.pop(name, None)
            item |= {"good_until": _ms(good_until), "expires_at": round(good_until)}
            if identity.address is not None:
                item["address"] = identity.address
            else:
                item["code"] = identity.code

        self._table.update("/".join(lease.recipient), self._held(lease), keep)
        self._remember(lease.recipient, identity, good_until)

    def release(self, lease: LookUpLease) -> None:
        def let_go(item: Item) -> None:
            del item["token"], item["lease_until"]

        self._table.update("/".join(lease.recipient), self._held(lease), let_go)

    def forget(self, recipient: Recipient) -> None:
        def drop(item: Item) -> None:
            for name in ("address", "code", "good_until"):
                item.pop(name, None)

        self._memory.pop(recipient, None)
        self._table.update("/".join(recipient), bool, drop)

    def holds(self, recipient: Recipient) -> bool:
        return bool(self._table.get("/".join(recipient)))

    def erase(self, recipient: Recipient) -> None:
        self._memory.pop(recipient, None)
        self._table.items.pop("/".join(recipient), None)

    def mark_forgotten(self, phone: str) -> None:
        now = self._now()

        def mark(item: Item) -> None:
            item |= {"forgotten_at": _ms(now), "expires_at": round(now) + 15 * 86_400}

        self._table.update(forgotten_key(phone), lambda _: True, mark)

    @staticmethod
    def _held(lease: LookUpLease) -> Callable[[Item], bool]:
        return lambda item: item.get("token") == lease.token

    def _good(self, recipient: Recipient, item: Item) -> Identity | None:
        good_until = item.get("good_until", 0) / 1000
        if good_until <= self._now():
            return None
        identity = Identity(item.get("address"), item.get("code"))
        self._remember(recipient, identity, good_until)
        return identity

    def _remember(self, recipient: Recipient, identity: Identity, good_until: float) -> None:
        self._memory[recipient] = (min(good_until, self._now() + 300), identity)
        self._memory.move_to_end(recipient)
        if len(self._memory) > self._memory_entries:
            self._memory.popitem(last=False)


def _drop(item: Item, *names: str) -> None:
    for name in names:
        item.pop(name, None)


class FakePacing:
    """See `notifier.aws.pacing`."""

    def __init__(self, table: FakeTable, now: Callable[[], float]) -> None:
        self._table = table
        self._now = now
        self.reservations: list[tuple[str, Plan, int]] = []

    def reserve(
        self,
        bot: Bot,
        plan: Plan,
        count: int,
        horizon: float,
        *,
        probing: bool = False,
        asking: bool = False,
    ) -> Reservation:
        self.reservations.append((bot.name, plan, count))
        per_second = bot.messages_per_second if plan == "messages" else bot.commands_per_second
        interval = -(-1_000_000 // (0.95 * per_second))
        now = self._now()
        now_us = round(now * 1e6)
        following = f"next_{plan}_at"

        def broken(item: Item) -> bool:
            answers = asking and "number_down_at" in item
            return "broken" in item and not probing and not answers

        def possible(item: Item) -> bool:
            shut = item.get("shut_until", 0) > _ms(now) or broken(item)
            return (
                not shut
                and "paused" not in item
                and item.get(following, 0) <= now_us + round(horizon * 1e6)
            )

        def take(item: Item) -> None:
            item[following] = max(now_us, item.get(following, 0)) + round(count * interval)

        taken, item = self._table.update(f"bot:{bot.name}", possible, take)
        if taken:
            first = item[following] - round(count * interval)
            return Reservation(tuple((first + n * interval) / 1e6 for n in range(count)))
        if "paused" in item:
            return Reservation((), 60)
        if broken(item):
            return Reservation((), None)
        free_at = max(item.get("shut_until", 0) / 1000, item.get(following, now_us) / 1e6)
        return Reservation((), max(0.0, free_at - now))

    def shut(self, bot: str, until: float) -> None:
        def shut(item: Item) -> None:
            item["shut_until"] = _ms(until)

        self._table.update(f"bot:{bot}", lambda item: item.get("shut_until", 0) < _ms(until), shut)

    def open_breaker(self, bot: str, why: str) -> None:
        def open_it(item: Item) -> None:
            item.pop("failing", None)
            item["broken"] = why

        self._table.update(f"bot:{bot}", lambda _: True, open_it)

    def number_down(self, bot: str, why: str) -> None:
        now = _ms(self._now())

        def stop(item: Item) -> None:
            _drop(item, "failing", "tried_at")
            item |= {"broken": why, "number_down_at": now, "probe_until": now + 600_000}

        self._table.update(f"bot:{bot}", lambda _: True, stop)

    def close_breaker(self, bot: str, *, sent: bool) -> bool:
        now = _ms(self._now())
        closed, _ = self._table.update(
            f"bot:{bot}",
            lambda item: "number_down_at" not in item or (sent and "tried_at" in item),
            lambda item: _drop(item, "broken", "failing", "number_down_at", "tried_at"),
        )
        if sent and not closed:
            tried = {"tried_at": now, "probe_until": now + 600_000}
            self._table.update(f"bot:{bot}", lambda _: True, lambda item: item.update(tried))
        return closed

    def answered(self, bot: str) -> None:
        self._table.update(f"bot:{bot}", lambda _: True, lambda item: _drop(item, "failing"))

    def failed(self, bot: str, keys: Iterable[str]) -> bool:
        def count(item: Item) -> None:
            item["failing"] = item.get("failing", set()) | set(keys)

        counted, item = self._table.update(f"bot:{bot}", lambda item: "broken" not in item, count)
        if not counted:
            return True
        failing = len(item["failing"])
        if failing >= 5:
            self.open_breaker(bot, f"{failing} notifications in a row had no definite answer")
        return failing >= 5

    def pause(self, bot: str) -> None:
        now = _ms(self._now())
        self._table.update(
            f"bot:{bot}", lambda _: True, lambda item: item.setdefault("paused", now) and None
        )

    def resume(self, bot: str) -> None:
        gone = ("paused", "broken", "failing", "number_down_at", "tried_at", "probe_until")
        self._table.update(f"bot:{bot}", lambda _: True, lambda item: _drop(item, *gone))

    def probe(self, bot: str) -> bool:
        now = _ms(self._now())

        def take(item: Item) -> None:
            item["probe_until"] = now + 30_000

        mine, _ = self._table.update(
            f"bot:{bot}",
            lambda item: "broken" in item and item.get("probe_until", 0) <= now,
            take,
        )
        return mine


class FakeSecrets:
    """See `notifier.aws.secrets`. `text` is a function, so that the secret can change."""

    def __init__(self, text: Callable[[], str], now: Callable[[], float]) -> None:
        self._text = text
        self._now = now
        self._bots: Bots = {}
        self._fetched_at = float("-inf")
        self._lock = RLock()
        self.fetches = 0

    def bots(self) -> Bots:
        return self._not_older_than(300)

    def fresh(self, name: str, stale: Bot | None) -> Bot | BrokenBot | None:
        bot = self._bots.get(name)
        return bot if bot != stale else self._not_older_than(10).get(name)

    def _not_older_than(self, seconds: float) -> Bots:
        with self._lock:
            if self._now() - self._fetched_at > seconds:
                self.fetches += 1
                self._bots = parse_bots(self._text())
                self._fetched_at = self._now()
            return self._bots


@dataclass(frozen=True)
class Sent:
    """A message that BLiP was given."""

    bot: Bot
    message_id: str
    identity: str
    template: Template
    at: float


class FakeBlip:
    """Answers every call, unless told what to raise.

    Attributes:
        look_ups: every number asked for, refused or not.
        sent: every message handed over, refused or not.
        taken: those of them that BLiP took.
        call_seconds: what each call takes.
        before_look_up, before_send, before_history, before_ping: called with each call's bot,
            before it is answered; what they raise is what the call raises.
        stored: what the history knows, by message id.
        asked: the message ids that the history was asked about.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.look_ups: list[str] = []
        self.sent: list[Sent] = []
        self.taken: list[Sent] = []
        self.call_seconds = 0.0
        self.before_look_up: Callable[[Bot], None] = lambda _: None
        self.before_send: Callable[[Bot], None] = lambda _: None
        self.before_history: Callable[[Bot], None] = lambda _: None
        self.before_ping: Callable[[Bot], None] = lambda _: None
        self.stored: dict[str, list[Receipt]] = {}
        self.asked: list[str] = []
        self.pings = 0

    def look_up(self, bot: Bot, phone: str) -> str:
        self.look_ups.append(phone)
        self._clock.sleep(self.call_seconds)
        self.before_look_up(bot)
        return identity_of(phone)

    def send(self, bot: Bot, message_id: str, identity: str, template: Template) -> None:
        sent = Sent(bot, message_id, identity, template, self._clock.now())
        self.sent.append(sent)
        self._clock.sleep(self.call_seconds)
        self.before_send(bot)
        self.taken.append(sent)

    def history(self, bot: Bot, message_id: str) -> list[Receipt]:
        self.asked.append(message_id)
        self._clock.sleep(self.call_seconds)
        self.before_history(bot)
        return self.stored.get(message_id, [])

    def ping(self, bot: Bot) -> None:
        self.pings += 1
        self._clock.sleep(self.call_seconds)
        self.before_ping(bot)


def identity_of(phone: str) -> str:
    """Give what the fake BLiP calls a number: nobody could guess it."""
    return f"wa-{phone[::-1].rstrip('+')}@wa.gw.msging.net"


def raises(*failures: Exception) -> Callable[[Bot], None]:
    """Raise these, one per call; then nothing any more."""
    left = list(failures)

    def strike(_: Bot) -> None:
        if left:
            raise left.pop(0)

    return strike


def always(failure: Callable[[], Failure]) -> Callable[[Bot], None]:
    """Raise such a failure at every call."""

    def strike(_: Bot) -> None:
        raise failure()

    return strike


class FakeMeter:
    """See `notifier.telemetry`."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.counts: Counter[str] = Counter()

    def took(self, what: str, seconds: float) -> None:
        self.times[what].append(seconds)

    def age(self, what: str, seconds: float) -> None:
        self.times[what].append(seconds)

    def count(self, what: str, number: int = 1) -> None:
        if number:
            self.counts[what] += number


@dataclass(frozen=True)
class Letter:
    """A dead letter."""

    body: str
    reason: Reason
    failure: dict[str, Any]
    bot: str | None
    notification_id: str | None
    generation: int | None


@dataclass
class _Kept:
    """A dead letter on its queue; `letter` is None for what SQS itself has moved there."""

    letter_id: str
    body: str
    letter: Letter | None
    at: float
    visible_at: float = 0.0
    receives: int = 0

    @property
    def handle(self) -> str:
        return f"{self.letter_id}/{self.receives}"


class FakeDeadLetters:
    """See `notifier.aws.queues`. `before_put` is called first, and may raise."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self.before_put: Callable[[], None] = lambda: None
        self._kept: dict[str, _Kept] = {}

    @property
    def letters(self) -> list[Letter]:
        return [kept.letter for kept in self._kept.values() if kept.letter]

    def put(
        self,
        body: str,
        reason: Reason,
        failure: Mapping[str, Any],
        *,
        bot: str | None,
        notification_id: str | None,
        generation: int | None,
    ) -> None:
        self.before_put()
        told = {name: value for name, value in failure.items() if value is not None}
        letter = Letter(body, reason, told, bot, notification_id, generation)
        self._keep(body, letter)

    def moved(self, body: str) -> None:
        """What SQS does with a message that was received too often."""
        self._keep(body, None)

    def _keep(self, body: str, letter: Letter | None) -> None:
        letter_id = str(uuid4())
        self._kept[letter_id] = _Kept(letter_id, body, letter, self.now())

    def depth(self) -> tuple[int, int]:
        hidden = sum(kept.visible_at > self.now() for kept in self._kept.values())
        return len(self._kept) - hidden, hidden

    def receive(self, hidden_seconds: int) -> list[DeadLetter]:
        visible = [kept for kept in self._kept.values() if kept.visible_at <= self.now()][:10]
        for kept in visible:
            kept.visible_at = self.now() + hidden_seconds
            kept.receives += 1
        return [_dead_letter(kept) for kept in visible]

    def hide(self, handles: Iterable[str], seconds: int) -> None:
        for kept in self._handled(handles):
            kept.visible_at = self.now() + seconds

    def delete(self, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        gone = {kept.letter_id for kept in self._handled(each.receipt_handle for each in letters)}
        for letter_id in gone:
            del self._kept[letter_id]
        return [letter for letter in letters if letter.letter_id in gone]

    def _handled(self, handles: Iterable[str]) -> list[_Kept]:
        by_handle = {kept.handle: kept for kept in self._kept.values()}
        return [by_handle[handle] for handle in handles if handle in by_handle]


def _dead_letter(kept: _Kept) -> DeadLetter:
    if kept.letter is None:
        return DeadLetter(kept.letter_id, kept.handle, kept.body, None, kept.at)
    return DeadLetter(
        kept.letter_id,
        kept.handle,
        kept.body,
        kept.letter.reason.value,
        kept.at,
        bot=kept.letter.bot,
        notification_id=kept.letter.notification_id,
        generation=kept.letter.generation,
        redrives=kept.letter.failure.get("redrives", 0),
        failure=kept.letter.failure,
    )


class FakeRequests:
    """The requests queue, as far as requests are put back.

    Attributes:
        put_backs: by the stack itself: body, generation and delay.
        put_back_redrives: how often an operator had put each of those back before.
        redriven: by an operator, as requests on the queue.
        refuses: tells of which bodies this queue wants to know nothing.
    """

    def __init__(self) -> None:
        self.now: Callable[[], float] = lambda: 0.0
        self.put_backs: list[tuple[str, int, int]] = []
        self.put_back_redrives: list[int] = []
        self.redriven: list[QueuedRequest] = []
        self.refuses: Callable[[str], bool] = lambda _: False

    def put_back(
        self,
        body: str,
        *,
        bot: str,
        generation: int,
        redrives: int,
        delay_seconds: int,
    ) -> None:
        assert bot
        self.put_backs.append((body, generation, delay_seconds))
        self.put_back_redrives.append(redrives)

    def redrive(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        taken = [letter for letter in letters if not self.refuses(letter.body)]
        self.redriven += [
            QueuedRequest(
                str(uuid4()),
                "receipt",
                letter.body,
                self.now(),
                generation=letter.generation,
                redrives=letter.redrives + 1,
            )
            for letter in taken
        ]
        return taken


class FakeStatusEvents:
    """Takes every event, unless `refuses` says otherwise."""

    def __init__(self) -> None:
        self.told: list[StatusEvent] = []
        self.refuses: Callable[[StatusEvent], bool] = lambda _: False

    def put(self, events: Sequence[StatusEvent]) -> list[StatusEvent]:
        refused = [event for event in events if self.refuses(event)]
        self.told += [event for event in events if event not in refused]
        return refused


@dataclass
class World:
    """Everything that sandboxes share. `sandbox()` makes one more of them.

    Attributes:
        bots: the secret's content; a text stands for itself.
    """

    clock: Clock = field(default_factory=Clock)
    ledger_table: FakeTable = field(default_factory=FakeTable)
    identities_table: FakeTable = field(default_factory=FakeTable)
    dead_letters: FakeDeadLetters = field(default_factory=FakeDeadLetters)
    requests: FakeRequests = field(default_factory=FakeRequests)
    events: FakeStatusEvents = field(default_factory=FakeStatusEvents)
    meter: FakeMeter = field(default_factory=FakeMeter)
    bots: Any = field(default_factory=lambda: {"default": {"key": KEY, "namespace": "ns"}})
    blip: FakeBlip = field(init=False)

    def __post_init__(self) -> None:
        self.blip = FakeBlip(self.clock)
        self.dead_letters.now = self.requests.now = self.clock.now

    def sandbox(
        self,
        *,
        threads: Executor | None = None,
        uniform: Callable[[float, float], float] = max,
        **policy: Any,
    ) -> "Sandbox":
        """Build what runs in one sandbox. `uniform` gives the upper bound unless told otherwise."""
        return Sandbox(self, threads or OneAfterTheOther(), uniform, Policy(**policy))

    def queued(
        self,
        body: str | Mapping[str, Any],
        *,
        generation: int | None = None,
        age: float = 0.0,
        receives: int = 1,
    ) -> QueuedRequest:
        """Give a request as it lies on the queue, for `age` seconds."""
        text = body if isinstance(body, str) else json.dumps(body)
        record_id = str(uuid4())
        published_at = self.clock.now() - age
        return QueuedRequest(
            record_id,
            f"receipt of {record_id}",
            text,
            published_at,
            generation=generation,
            receives=receives,
        )

    def secret(self) -> str:
        return self.bots if isinstance(self.bots, str) else json.dumps(self.bots)

    def know(self, phone: str, bot: str = "default") -> None:
        """Let the identities hold a number."""
        good_until = self.clock.now() + 500_000
        self.identities_table.items[f"{bot}/{phone}"] = {
            "key": f"{bot}/{phone}",
            "address": identity_of(phone),
            "good_until": _ms(good_until),
            "expires_at": round(good_until),
        }

    def entry(self, body: Mapping[str, Any]) -> Item:
        """Give the ledger's item of a request; empty if there is none."""
        return self.ledger_table.get(ledger_key(body.get("bot", "default"), body["id"]))


class Sandbox:
    """The use case with its own memory, over a world that it shares."""

    def __init__(
        self,
        world: World,
        threads: Executor,
        uniform: Callable[[float, float], float],
        policy: Policy,
    ) -> None:
        now = world.clock.now
        self._world = world
        self.ledger = FakeLedger(world.ledger_table, now)
        self.identities = FakeIdentities(world.identities_table, now=now)
        self.pacing = FakePacing(world.identities_table, now)
        self.secrets = FakeSecrets(world.secret, now)
        self.receipts = Receipts(
            self.ledger,
            self.identities,
            self.pacing,
            world.requests,
            world.dead_letters,
            world.events,
            world.meter,
            now,
        )
        self.delivery = Delivery(
            ledger=self.ledger,
            identities=self.identities,
            pacing=self.pacing,
            secrets=self.secrets,
            blip=world.blip,
            dead_letters=world.dead_letters,
            receipts=self.receipts,
            events=world.events,
            meter=world.meter,
            clock=world.clock,
            threads=threads,
            side_by_side=32,
            policy=policy,
            uniform=uniform,
        )

    def deliver(
        self, *requests: str | Mapping[str, Any] | QueuedRequest, seconds: float = 30
    ) -> list[Verdict]:
        """Deliver one batch, with so much time left; the verdicts in the order of the requests."""
        batch: Sequence[QueuedRequest] = [
            request if isinstance(request, QueuedRequest) else self._world.queued(request)
            for request in requests
        ]
        verdicts = self.delivery.deliver(batch, self._world.clock.now() + seconds)
        by_record = {verdict.queued.record_id: verdict for verdict in verdicts}
        assert len(verdicts) == len(by_record) == len(batch)
        return [by_record[queued.record_id] for queued in batch]


def a_request(**changes: Any) -> dict[str, Any]:
    """A valid request; every call gives another notification to the same person."""
    return {
        "id": f"order-{uuid4()}",
        "to": "+5531999998888",
        "template": {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981"]},
    } | changes


def a_notification(
    queued: QueuedRequest | None = None, *, generation: int | None = None, **changes: Any
) -> Notification:
    """The request above, parsed."""
    if queued is None:
        body = json.dumps({"id": "order-1"} | a_request(**{"id": "order-1"} | changes))
        queued = QueuedRequest("record", "receipt", body, 1_800_000_000.0, generation)
    parsed = parse(queued.body)
    key = ledger_key(parsed.request.bot, parsed.request.id)
    return Notification(queued, parsed.request, parsed.content_hash, key)
