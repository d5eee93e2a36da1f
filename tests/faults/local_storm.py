"""A storm over the local stack: real sandboxes, sockets and queues, everything going wrong at once.

What was published and what BLiP took is known here from outside; of the product only the ledger and
the dead letters are read, as by an operator.
"""

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.notification import ledger_key
from tests.faults.deployed import (
    Message,
    change_bots,
    is_quiet,
    ledger_items,
    publish,
    show_again_after,
)
from tests.faults.sandboxes import sandboxes
from tests.local.blip import Bot, Delays
from tests.local.dead_letters import DeadLetters, Letter
from tests.local.machine import wait_until
from tests.local.stack import SIMULATED_BOTS, LocalStack
from tests.support.builders import a_request

# What is published, by weight, and how each may end: status and reason. Everything but `ORDINARY`
# ends by a dead letter.
KINDS = {
    "ordinary": 800,
    "published twice": 60,
    "other content under the same id": 15,
    "soon out of date": 30,
    "out of date": 10,
    "malformed": 5,
    "invalid": 5,
    "unknown bot": 5,
    "no phone number": 15,
    "refused by BLiP": 10,
    "receipt: undelivered": 15,
    "receipt: cannot be reached": 10,
    "two to one person": 20,
}
DELIVERED = ("consumed", None)
ENDS = {
    "out of date": ("expired", "expired"),
    "unknown bot": ("rejected", "unknown_bot"),
    "no phone number": ("rejected", "not_a_phone_number"),
    "refused by BLiP": ("rejected", "rejected"),
    "receipt: undelivered": ("failed", "undelivered"),
    "receipt: cannot be reached": ("failed", "undelivered"),
}
FATES: dict[str, dict[str, Any]] = {
    "no phone number": {"path": "lookups", "failure": 61},
    "refused by BLiP": {"path": "messages", "status": 400, "code": 24},
    "receipt: undelivered": {"path": "messages", "receipt": 131047},
    "receipt: cannot be reached": {"path": "messages", "receipt": 131026},
}
WEATHER: tuple[dict[str, Any], ...] = (
    {"path": "messages", "probability": 0.01, "status": 503},
    {"path": "messages", "probability": 0.01, "status": 500},
    {"path": "messages", "probability": 0.01, "drop": True},
    {"path": "messages", "probability": 0.01, "drop": True, "accept": True},
    {"path": "messages", "probability": 0.01, "status": 504, "accept": True},
    # Slower than a call may be, and slow.
    {"path": "messages", "probability": 0.003, "answer_latency_seconds": 12},
    {"path": "messages", "probability": 0.05, "latency_seconds": 0.2, "jitter_seconds": 1},
    {"path": "messages", "probability": 0.001, "status": 429, "code": 34},
    {"path": "lookups", "probability": 0.01, "status": 503},
    {"path": "lookups", "probability": 0.01, "drop": True},
    {"path": "history", "probability": 0.05, "status": 503},
)
PARAMETERS = {
    "SettleWindowSeconds": "4",
    "BackoffBaseSeconds": "1",
    "BackoffMaxSeconds": "8",
    "CooldownSeconds": "3",
    "BreakerWaitSeconds": "3",
}
# Shorter than a slow batch takes: what is at work is shown to a second sandbox, too.
SEEN_AGAIN_SECONDS = 8
SPELL_SECONDS = 2.0
# How often other requests come after the storm, for as long as something of it is left.
LATER_SECONDS = 10.0
# How long a call to BLiP may take that began in time.
CALL_SECONDS = 10.0


@dataclass(frozen=True)
class Storm:
    """One storm.

    Attributes:
        plan: messages per second of each bot: what the machine can carry, not more.
        seconds: over so many seconds the requests come, and faults that have a time strike.
        kills: how many sandboxes are killed meanwhile.
    """

    requests: int
    seconds: float
    kills: int
    plan: float = 100
    seed: int = 1


@dataclass
class Result:
    """What came of a storm.

    Attributes:
        broken: what did not hold, as sentences.
        struck: how often BLiP did something that it should not.
    """

    requests: int
    seconds: float = 0.0
    lost: int = 0
    sent_twice: int = 0
    wrong: int = 0
    undeserved: int = 0
    sent: int = 0
    killed: int = 0
    struck: int = 0
    letters: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


@dataclass
class Wanted:
    """What was published under one key."""

    kind: str
    notification_id: str
    if_unknown: str = "resend"
    valid_until: float = float("inf")
    bodies: list[str] = field(default_factory=list)


class Published:
    """Everything that a storm publishes, and what should become of it."""

    def __init__(self, storm: Storm) -> None:
        self._random = random.Random(storm.seed)
        self._seconds = storm.seconds
        self.wanted: dict[str, Wanted] = {}
        self.unusable: Counter[str] = Counter()
        self.fates: list[dict[str, Any]] = []
        self.messages: list[Message] = []
        for number in range(storm.requests):
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            self._add(number, kind)

    def later(self) -> list[Message]:
        """Return an ordinary request of each bot, for after the storm."""
        before = len(self.messages)
        for bot in SIMULATED_BOTS:
            self._add(before + len(self.messages), "ordinary", bot=bot, delay=0)
        return self.messages[before:]

    def _add(
        self, number: int, kind: str, *, bot: str | None = None, delay: int | None = None
    ) -> None:
        chance, now = self._random, time.time()
        phone = f"+5531920{number:06}"
        request = a_request(
            id=f"n-{number}",
            to=phone,
            bot=bot or chance.choice(list(SIMULATED_BOTS)),
            if_unknown=chance.choice(["resend", "fail"]),
        )
        if kind in FATES:
            self.fates.append({"to": phone} | FATES[kind])
        copies = [request]
        match kind:
            case "published twice":
                copies.append(request)
            case "other content under the same id":
                copies.append(request | {"metadata": {"other": "content"}})
            case "two to one person":
                copies.append(request | {"id": f"n-{number}-second"})
            case "soon out of date":
                soon = chance.choice([1, 10, 30])
                request["valid_until"] = _iso(now + soon)
            case "out of date":
                request["valid_until"] = _iso(now - 60)
            case "unknown bot":
                request["bot"] = "nobody"
            case "invalid":
                request["to"] = "1234"
            case _:
                pass
        for copy in copies:
            body = f"no JSON {number}" if kind == "malformed" else json.dumps(copy)
            after = chance.randint(0, round(self._seconds)) if delay is None else delay
            self.messages.append(Message(body, request["bot"], after))
            self._want(kind, body)

    def _want(self, kind: str, body: str) -> None:
        try:
            request = parse(body).request
        except InvalidRequest:
            self.unusable[body] += 1
            return
        key = ledger_key(request.bot, request.id)
        until = request.valid_until.timestamp() if request.valid_until else float("inf")
        made = Wanted(kind, request.id, request.if_unknown, until)
        self.wanted.setdefault(key, made).bodies.append(body)


def rage(stack: LocalStack, storm: Storm) -> Result:
    """Run a storm over a stack until all is quiet; return what is left."""
    blip, rng = stack.simulator, random.Random(storm.seed)
    assert blip
    began = time.monotonic()
    published = Published(storm)
    _prepare(stack, storm, published)
    result = Result(storm.requests)
    weather = threading.Thread(target=_thunder, args=(stack, storm, rng, result))
    weather.start()
    publish(stack, published.messages)
    weather.join()
    last = [time.monotonic()]

    def is_over() -> bool:
        # An unknown counts as not sent only once the history shows a message that came after it.
        if time.monotonic() - last[0] > LATER_SECONDS and not is_quiet(stack):
            publish(stack, published.later())
            last[0] = time.monotonic()
        return is_quiet(stack)

    wait_until(is_over, "the storm to be over", at_most=900, every=0.5)
    result.seconds = time.monotonic() - began
    result.struck = sum(rule["strikes"] for rule in blip.faults())
    _judge(stack, published, result)
    return result


def _prepare(stack: LocalStack, storm: Storm, published: Published) -> None:
    blip = stack.simulator
    assert blip
    change_bots(stack, messages_per_second=storm.plan, commands_per_second=4 * storm.plan)
    for name in SIMULATED_BOTS.values():
        plan = {"messages_per_second": storm.plan, "commands_per_second": 4 * storm.plan}
        blip.put_bot(Bot.model_validate({"name": name} | plan))
    blip.configure(
        penalty_seconds=3,
        history_lag_seconds=1,
        receipts={
            "delays": Delays(accepted=None, dispatched=None).model_dump(),
            "duplicates": 1,
            "out_of_order": True,
            "retries": 10,
        },
    )
    for rule in published.fates:
        blip.add_fault(**rule)
    for rule in WEATHER:
        blip.add_fault(**rule)
    show_again_after(stack, SEEN_AGAIN_SECONDS)


def _thunder(stack: LocalStack, storm: Storm, rng: random.Random, result: Result) -> None:
    """Kill sandboxes, refuse the key for a while, and every connection, each at its time."""
    blip = stack.simulator
    assert blip
    wait_until(blip.inbox, "the first message", every=0.2)
    now = time.monotonic()
    strikes = [(now + rng.uniform(0, 1) * storm.seconds, "kill") for _ in range(storm.kills)]
    strikes += [(now + 0.3 * storm.seconds, "wrong key"), (now + 0.7 * storm.seconds, "outage")]
    for at, what in sorted(strikes):
        time.sleep(max(0.0, at - time.monotonic()))
        match what:
            case "wrong key":
                blip.add_fault(status=401, code=13, end=SPELL_SECONDS)
            case "outage":
                with blip.unreachable():
                    time.sleep(SPELL_SECONDS)
            case _ if found := sandboxes(stack.home):
                rng.choice(found).kill()
                result.killed += 1
            case _:
                pass


def _judge(stack: LocalStack, published: Published, result: Result) -> None:
    blip = stack.simulator
    assert blip
    accepted: dict[str, list[float]] = defaultdict(list)
    for message in blip.inbox():
        at = datetime.fromisoformat(message["accepted_at"]).timestamp()
        accepted[message["id"]].append(at)
    result.sent = len(accepted)
    letters: dict[str, list[Letter]] = defaultdict(list)
    for letter in DeadLetters(stack.aws.sqs, stack.dead_letters_queue).collect():
        letters[letter.body].append(letter)
        result.letters[letter.reason] += 1
    items = {item["key"]["S"]: item for item in ledger_items(stack)}

    for sent_as, times in accepted.items():
        if len(times) > 1:
            result.sent_twice += 1
            result.broken.append(f"{sent_as} was sent {len(times)} times")
        if sent_as not in published.wanted:
            result.broken.append(f"{sent_as} was sent, and was not asked for")
    for body, copies in published.unusable.items():
        reasons = {letter.reason for letter in letters[body]}
        if len(letters[body]) < copies:
            result.lost += 1
            result.broken.append(f"lost: {body[:60]}")
        elif reasons != {"malformed" if body.startswith("no JSON") else "invalid"}:
            result.undeserved += 1
            result.broken.append(f"{body[:60]}: {reasons}")
    for key, wanted in published.wanted.items():
        _judge_one(wanted, items.get(key, {}), accepted.get(key, []), letters, result)


def _judge_one(
    wanted: Wanted,
    item: dict[str, Any],
    accepted: Sequence[float],
    letters: dict[str, list[Letter]],
    result: Result,
) -> None:
    """Judge one notification: it must have the right status, and each dead letter must be true."""
    name = f"{wanted.notification_id} ({wanted.kind})"
    status = item.get("status", {}).get("S", "")
    reason = item.get("reason", {}).get("S")
    own = [letter for body in set(wanted.bodies) for letter in letters[body]]
    reasons = {letter.reason for letter in own}
    if not (status == "consumed" or (reason and reason in reasons)):
        result.lost += 1
        result.broken.append(f"lost: {name} is {status or 'nowhere'}, its letters say {reasons}")
        return
    deserved = _deserved(wanted, own, sent=bool(accepted))
    if (status, reason) not in deserved:
        result.wrong += 1
        result.broken.append(f"{name} ended {status} {reason}, sent {len(accepted)} times")
    conflict = {"id_conflict"} if len(set(wanted.bodies)) > 1 else set()
    if not conflict <= reasons:
        result.lost += 1
        result.broken.append(f"lost: the other content of {name}")
    if undeserved := reasons - conflict - {reason for _, reason in deserved}:
        result.undeserved += 1
        result.broken.append(f"{name} has dead letters that say {undeserved}")
    if any(at - wanted.valid_until > CALL_SECONDS for at in accepted):
        result.wrong += 1
        result.broken.append(f"{name} was sent after valid_until")


def _deserved(
    wanted: Wanted, letters: Sequence[Letter], *, sent: bool
) -> set[tuple[str, str | None]]:
    """Return how a notification may end; what BLiP took must have ended as it did there."""
    end = ENDS.get(wanted.kind, DELIVERED)
    needs_sending = end == DELIVERED or end[1] == "undelivered"
    if sent or not needs_sending:
        return {end}
    deserved: set[tuple[str, str | None]] = set()
    late = [letter for letter in letters if letter.sent_at >= wanted.valid_until]
    if late:
        deserved.add(("expired", "expired"))
    # No answer came, and the history lacks it: the producer wants it to end, or it
    # was so a second time.
    denied_twice = any(letter.failure.get("attempts", 0) > 1 for letter in letters)
    if wanted.if_unknown == "fail" or denied_twice:
        deserved.add(("failed", "outcome_unknown"))
    return deserved


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
