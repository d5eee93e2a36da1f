"""The invariants, and whether they held.

    never lost       every request ends sent, or as a dead letter, or is still on the queue
    never twice      BLiP takes one message per generation
    in time          nothing is sent after `valid_until`, nor after it was taken back, nor before
                     its wait is over
    forward only     a status never goes back, and a new generation follows only a failed one, or
                     one that waits, that was put back on the queue
    the right words  every dead letter has the reason it deserves, and upstream hears of each end
    every event      each change of status that upstream hears of is published, in the order of its
                     key, and nothing else is
    no code kept     neither the ledger nor a dead letter has a one-time code
    one probe        an open breaker is probed once in 30 s at most

What was published and what BLiP took is known here from outside; of the product only the ledger,
the dead letters and the events are looked at, as an operator would.
"""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from notifier.contract.parse import parse, read_kept
from notifier.contract.problems import InvalidRequest
from notifier.contract.request import NotificationRequest
from notifier.domain.notification import ONE_TIME_CODE_SECONDS, ledger_key, message_id
from notifier.entrypoints.environment import BatchCrashed
from tests.faults.events import REFUSED, StatusEvents

if TYPE_CHECKING:
    from tests.faults.blip import Accepted
    from tests.faults.world import World
    from tests.support.simulated_aws.sqs import Message

# How far each status is; the product's own table is not asked.
RANKS = {
    "claimed": 0,
    "sending": 0,
    "retrying": 0,
    "unknown": 0,
    "sent": 1,
    "accepted": 2,
    "dispatched": 3,
    "waiting": 4,
    "failed": 4,
    "rejected": 4,
    "expired": 4,
    "cancelled": 4,
    "received": 5,
    "consumed": 6,
}
UNDELIVERED = {"failed", "rejected", "expired"}
SENT = {"sent", "accepted", "dispatched", "received", "consumed"}
DELIVERED = {"received", "consumed"}
# With these reasons a dead letter says that nothing was sent.
NOT_SENT = {
    "unknown_bot",
    "expired",
    "not_a_phone_number",
    "rejected",
    "waited_too_long",
}
# An empty history is no answer before a later message is shown; for that long it is waited for.
CONTROL_SECONDS = 6 * 3600
# From a question for the history to the dead letter that follows from its answer.
QUESTION_SECONDS = 60.0
PROBE_SECONDS = 30.0
# The right to probe is older than the probe by the time of a table's answer, which may be slow.
PROBE_TOLERANCE = 4.0
MAX_TOLD = 20
# What the one-time codes look like that are published here.
CODE = "code[0-9]{9}"
# What says that the recipient has had enough marketing for now.
CAPS = {131049, 130472, 472, 131026}
MAX_LONG_WAITS = 3


@dataclass
class Wanted:
    """What was published under one key."""

    request: NotificationRequest
    published_at: list[float] = field(default_factory=list)
    contents: set[str] = field(default_factory=set)
    redriven: bool = False

    @property
    def valid_until(self) -> float:
        return self._valid_until(self.published_at[-1])

    @property
    def may_expire_at(self) -> float:
        return self._valid_until(self.published_at[0])

    def _valid_until(self, published_at: float) -> float:
        valid_until: datetime | None = self.request.valid_until
        if valid_until is None and self.request.template.otp is not None:
            return published_at + ONE_TIME_CODE_SECONDS
        return valid_until.timestamp() if valid_until else float("inf")


class Invariants:
    """Watches a world.

    Attributes:
        so_far: the violations during the run, as sentences.
        poison: the keys of unreadable items, with their records in the stream.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.wanted: dict[str, Wanted] = {}
        self.unusable: Counter[str] = Counter()
        self.codes: set[str] = set()
        self.letters: list[Message] = []
        self.so_far: list[str] = []
        self.poison: dict[str, int] = {}
        self._put_back: set[tuple[str, int]] = set()  # body and generation
        # Dead letters of requests that waited too long for a message that shows how far the
        # history goes.
        self._waited_for_control: set[int] = set()
        # Keys of what waited when it was copied back from a backup: nothing sends it by itself.
        self.left_waiting: set[str] = set()
        self._shown: set[int] = set()  # dead letters of messages that the history shows
        self._ever_cancelled: set[str] = set()
        world.blip.on_accept = self._accepted
        self.events = StatusEvents(self._break, all_receipts=world.settings.all_receipts)
        world.bus.on_event = self.events.published
        world.requests.on_sent = self._sent_to_requests
        world.dead_letters.on_sent = self._sent_to_dead_letters

    # --- during the run ---------------------------------------------------------------------------

    def published(self, body: str) -> None:
        """Take note of a request."""
        try:
            parsed = parse(body)
        except InvalidRequest:
            self.unusable[body] += 1
            return
        request = parsed.request
        key = ledger_key(request.bot, request.id)
        wanted = self.wanted.setdefault(key, Wanted(request))
        wanted.published_at.append(self._world.simulation.now)
        if request.template.otp is not None:
            self.codes.add(request.template.otp)
        wanted.contents.add(parsed.content_hash)

    def redriven(self, letter: "Message") -> None:
        """Record a dead letter that is redriven."""
        try:
            request = parse(letter.body).request
        except InvalidRequest:
            self.unusable[letter.body] += 1
            return
        self.wanted[ledger_key(request.bot, request.id)].redriven = True

    def _sent_to_requests(self, message: "Message") -> None:
        if "generation" in message.attributes:
            generation = int(message.attributes["generation"]["StringValue"])
            self._put_back.add((message.body, generation))
            self._look_at_wait(message.body, generation)

    def _look_at_wait(self, body: str, generation: int) -> None:
        """Find what is put on the queue before its wait is over."""
        kept = read_kept(body)
        if kept is None or not kept.is_whole:
            return  # nothing sends it
        request = kept.request
        key = ledger_key(request.bot, request.id)
        item = self._world.tables["ledger"].items.get(key, {})
        waits = item.get("status") == "waiting" and item["generation"] == generation
        early = item.get("wake_at", 0) / 1000 - self._world.simulation.now
        if waits and early > self._world.faults.skew and not self.wanted[key].redriven:
            self._break(f"{key} is put on the queue {early:.3f} s before its wait is over")

    def _sent_to_dead_letters(self, letter: "Message") -> None:
        self.letters.append(letter)
        facts = _facts(letter)
        if facts["reason"] == "outcome_unknown":
            item = self._world.tables["ledger"].items[
                ledger_key(facts["bot"], facts["notification_id"])
            ]
            now = self._world.now()
            if now - item.get("in_flight_until", now * 1000) / 1000 >= CONTROL_SECONDS:
                self._waited_for_control.add(letter.number)
            sent_as = message_id(item["key"], facts["generation"] or 1)
            blip = self._world.blip
            settled = self._truthful and blip.keeps_all(sent_as)
            if settled or blip.shows(sent_as, now - QUESTION_SECONDS):
                self._shown.add(letter.number)

    def _break(self, what: str) -> None:
        self.so_far.append(f"{self._world.simulation.now - 1_800_000_000:.3f} {what}")

    def _accepted(self, accepted: "Accepted") -> None:
        key, _, generation = accepted.message_id.partition(":")
        wanted = self.wanted.get(key)
        if wanted is None:
            self._break(f"{accepted.message_id} was sent, and was not asked for")
            return
        blip = self._world.blip
        times = len(blip.sent[accepted.message_id])
        if times > 1:
            self._break(f"{accepted.message_id} was sent {times} times")
        late = accepted.began_at - wanted.valid_until
        if len(wanted.contents) == 1 and late > self._world.faults.skew:
            self._break(f"{accepted.message_id} was sent {late:.3f} s after valid_until")
        standing = self._world.tables["ledger"].items.get(key, {})
        if standing.get("status") == "cancelled":
            self._break(f"{accepted.message_id} was sent, and is cancelled")
        if standing.get("generation", 0) < int(generation or 1):
            self._break(f"{accepted.message_id} was sent without its place in the ledger")

    @property
    def _truthful(self) -> bool:
        """Return whether BLiP's history shows everything before the settle window ends."""
        settings = self._world.settings
        window = settings.policy.get("settle_window_seconds", 900)
        return settings.history.kept and settings.history.lag < window

    def written(self, key: str, before: dict[str, Any], after: dict[str, Any], record: int) -> None:
        """Look at a write to the ledger, and the number of its record in the stream."""
        if key in self.poison:
            self.poison[key] = record
            return
        self.events.written(key, before, after, record)
        if "forgotten" in after:
            return
        if key.endswith(REFUSED) or not before or not after:
            return
        if before["expires_at"] <= self._world.now() + self._world.faults.skew + 1:
            return
        was, now = before["status"], after["status"]
        if now == "cancelled":
            self._ever_cancelled.add(key)
        if after["generation"] == before["generation"]:
            if RANKS[now] < RANKS[was]:
                self._break(f"{key} went back from {was} to {now}")
        elif after["generation"] != before["generation"] + 1:
            self._break(f"{key}: generation {before['generation']} -> {after['generation']}")
        elif was not in UNDELIVERED | {"waiting"}:
            self._break(f"{key}: generation {after['generation']} begins while {was}")
        elif (after["request"], before["generation"]) not in self._put_back:
            self._break(f"{key}: generation {after['generation']} begins, and was not asked for")
        if "request" in before and "request" not in after and now not in DELIVERED | {"cancelled"}:
            self._break(f"{key} lost its request, and is {now}")

    # --- at the end -------------------------------------------------------------------------------

    def broken(self, *, quiet: bool = True) -> list[str]:
        """Return what did not hold.

        Args:
            quiet: nothing is left to be done, so that everything must have ended.
        """
        world = self._world
        broken = list(self.so_far)
        broken += [f"unforeseen: {error}" for error in world.unforeseen]
        broken += [
            f"the function failed: {error!r}"
            for error in (
                *world.sending.errors,
                *world.recording.errors,
                *world.publishing.errors,
                *world.waking_errors,
            )
            if not isinstance(error, BotoCoreError | ClientError | BatchCrashed)
        ]
        for queue in (world.requests, world.receipts, world.dead_letters):
            broken += [f"{queue.name}: SQS deleted {each.body[:80]}" for each in queue.vanished]
            broken += [
                f"{queue.name}: received too often {each.body[:80]}" for each in queue.exhausted
            ]
        broken += self._letters()
        broken += self._kept_codes()
        broken += self._probes()
        broken += self._unpublished()
        if quiet:
            excused = self._excused()
            broken += self._ends(self.events.keys(excused))
            broken += self.events.missing(excused)
            broken += [
                f"{key} cannot be published, and is not on the queue"
                for key, record in self.poison.items()
                if record not in excused
            ]
        return broken

    def _excused(self) -> set[int]:
        """Return the stream's records of which nothing need have been published.

        A record is dropped after a day; it is lost to the function only if that was not called for
        so long.
        """
        publishing = self._world.publishing
        called_from = publishing.automatic_from - publishing.settings.oldest
        dropped = {record.number for record in publishing.dropped if record.at < called_from + 3600}
        return dropped | {int(facts["sequence_number"]) for facts in self._put_aside()}

    def _put_aside(self) -> list[dict[str, Any]]:
        """Return what the function has put on the queue; the mapping puts there what it drops."""
        bodies = [json.loads(message.body) for message in self._world.unpublished.waiting()]
        return [body for body in bodies if "DDBStreamBatchInfo" not in body]

    def _unpublished(self) -> list[str]:
        """Return the events that were set aside although they could have been published."""
        world = self._world
        keys = {
            key
            for key, wanted in self.wanted.items()
            if wanted.request.id in world.bus.faults.never | world.bus.faults.too_large
        }
        keys |= self.poison.keys()
        return [
            f"put aside, and not published: {facts}"
            for facts in self._put_aside()
            if facts["key"].removesuffix(REFUSED) not in keys
        ]

    def _kept_codes(self) -> list[str]:
        """Return the one-time codes that are kept."""
        items = self._world.tables["ledger"].items
        kept = {f"the ledger's {key}": str(item) for key, item in items.items()}
        kept |= {f"dead letter {letter.number}": letter.body for letter in self.letters}
        return [
            f"{where} holds the code {code}"
            for where, text in kept.items()
            for code in re.findall(CODE, text)
            if code in self.codes
        ]

    def _probes(self) -> list[str]:
        if self._world.settings.manual:
            return []  # the right to probe may be as old there as a sandbox grows
        return [
            f"bot {bot} was probed twice within {later - earlier:.2f} s"
            for bot, pings in self._world.blip.pings.items()
            for earlier, later in pairwise(pings)
            if later - earlier < PROBE_SECONDS - PROBE_TOLERANCE - 2 * self._world.faults.skew
        ]

    def _ends(self, unheard: set[str]) -> list[str]:
        """Return the requests that have not ended as they should.

        Args:
            unheard: the keys of items of which not everything could be published.
        """
        world = self._world
        broken = [] if world.quiet() else ["it never came to rest"]
        letters: dict[str, set[tuple[str, int]]] = defaultdict(set)
        bodies: Counter[str] = Counter()
        for letter in self.letters:
            facts = _facts(letter)
            bodies[letter.body] += 1
            if facts["notification_id"] and facts["bot"]:
                key = ledger_key(facts["bot"], facts["notification_id"])
                letters[key].add((facts["reason"], facts["generation"]))
            if facts["notification_id"] and facts["reason"] in {"invalid", "id_conflict"}:
                key = ledger_key(facts["bot"] or "default", facts["notification_id"]) + REFUSED
                events = world.bus.published[facts["notification_id"]]
                heard = any(each["reason"] == facts["reason"] for each in events)
                # A sandbox that dies between a conflict's dead letter and its refusal leaves the
                # request to the next one, which may find its id cancelled by then: no refusal
                # follows, and no event. The dead letter is there.
                owner = world.tables["ledger"].items.get(key.removesuffix(REFUSED), {})
                cancelled = owner.get("status") == "cancelled"
                if not (heard or cancelled) and key not in unheard:
                    broken.append(f"upstream never heard that {key} is {facts['reason']}")
        broken += [
            f"lost: {body[:80]}" for body, times in self.unusable.items() if bodies[body] < times
        ]
        sent: dict[str, int] = defaultdict(int)
        for sent_id, messages in world.blip.sent.items():
            sent[sent_id[:36]] += len(messages)
        for key, wanted in self.wanted.items():
            item = world.tables["ledger"].items.get(key)
            name = f"{wanted.request.id} ({key})"
            if item is None:
                broken.append(f"lost: {name} has no place in the ledger")
                continue
            if "forgotten" in item:
                continue
            status, generation = item["status"], item["generation"]
            published = {
                (detail["status"], detail["reason"])
                for detail in world.bus.published[wanted.request.id]
                if detail["bot"] == wanted.request.bot
            }
            never_heard = f"{name} is {status}, and upstream never heard of it"
            if status in SENT:
                if not sent[key]:
                    broken.append(f"lost: {name} is {status}, and BLiP never took it")
                if key not in unheard and not published & {(each, None) for each in SENT}:
                    broken.append(never_heard)
            elif status in UNDELIVERED:
                if (item.get("reason"), generation) not in letters[key]:
                    broken.append(f"lost: {name} {status} at {generation} without a dead letter")
                if key not in unheard and (status, item.get("reason")) not in published:
                    broken.append(never_heard)
            elif status == "cancelled":
                if key not in unheard and (status, None) not in published:
                    broken.append(never_heard)
                continue
            elif status != "waiting" or key not in self.left_waiting:
                broken.append(f"lost: {name} is still {status}")
            # While an id is cancelled, nothing under it is sent, whatever its content.
            if (
                len(wanted.contents) > 1
                and key not in self._ever_cancelled
                and not any(reason == "id_conflict" for reason, _ in letters[key])
            ):
                broken.append(f"lost: the other content of {name}")
        return broken

    def _letters(self) -> list[str]:
        """Return the untrue dead letters."""
        broken = []
        for letter in self.letters:
            facts = _facts(letter)
            problem = self._undeserved(letter, facts)
            if problem:
                broken.append(
                    f"dead letter {facts['reason']} of {facts['notification_id']}: {problem}"
                )
        return broken

    def _undeserved(self, letter: "Message", facts: dict[str, Any]) -> str:
        reason, generation = facts["reason"], facts["generation"]
        try:
            request = parse(letter.body).request
        except InvalidRequest as unusable:
            if reason == unusable.reason:
                return ""
            kept = read_kept(letter.body)
            if kept is None:
                return "it is unusable"
            request = kept.request  # of a one-time code, which is not kept
        key = ledger_key(request.bot, request.id)
        sent_as = message_id(key, generation or 1)
        world, blip = self._world, self._world.blip
        if reason in NOT_SENT and blip.sent.get(sent_as) and sent_as not in blip.denied_falsely:
            return "it was sent"
        fate = blip.fates.get(request.to)
        policy = world.settings.policy
        failed_at = datetime.fromisoformat(facts["failed_at"]).timestamp()
        match reason:
            case "unknown_bot":
                deserved = request.bot not in world.bots
            case "id_conflict":
                deserved = len(self.wanted[key].contents) > 1
            case "expired":
                deserved = self.wanted[key].may_expire_at <= failed_at + 0.001
            case "not_a_phone_number":
                deserved = fate is not None and not fate.a_number
            case "rejected":
                deserved = fate is not None and (fate.refused or fate.message is not None)
            case "undelivered":
                deserved = facts["failure"].get("code") in blip.failed.get(sent_as, ())
            case "recipient_capped":
                # After three waits of a day or more; or the next one would be over too late.
                gives_up = (generation or 1) > MAX_LONG_WAITS or request.valid_until is not None
                capped = set(blip.failed.get(sent_as, ())) & CAPS
                deserved = gives_up and facts["failure"].get("code") in capped
            case "opted_out":
                deserved = facts["failure"].get("code") in {131050} & set(blip.failed[sent_as])
            case "outcome_unknown":
                if letter.number in self._shown and world.settings.history.answers:
                    return "BLiP's history shows it"
                deserved = (
                    request.if_unknown == "fail"
                    or blip.denied[sent_as] > 1
                    or letter.number in self._waited_for_control
                )
            case "retries_exhausted":
                deserved = facts["failure"]["attempts"] >= policy.get("max_attempts", 20)
            case "waited_too_long":
                waited = world.simulation.now - letter.sent_at
                deserved = waited >= 0
            case _:
                deserved = False
        return "" if deserved else f"undeserved: {facts['failure']}"


def _facts(letter: "Message") -> dict[str, Any]:
    values = {name: value["StringValue"] for name, value in letter.attributes.items()}
    return {
        "reason": values.get("reason", "receives_exhausted"),
        "bot": values.get("bot"),
        "notification_id": values.get("notification_id"),
        "generation": int(values.get("generation", "0")),
        "failed_at": values.get("failed_at", ""),
        "failure": json.loads(values.get("failure", "{}")),
    }
