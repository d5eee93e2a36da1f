"""EventBridge, as far as status events are put on it; what was put, and what should have been.

The reference does not ask the product what a ledger item stands for: it looks at what each write
changes, as an observer of the table who knows the contract.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from notifier.aws.table import Item
from notifier.aws.template_events import DETAIL_TYPE as TEMPLATE_DETAIL_TYPE
from notifier.domain.notification import ledger_key
from tests.support.simulated_aws.dynamodb import Aws, AwsError, AwsFaults, refused
from tests.support.simulated_aws.simulation import Simulation

MAX_ENTRIES = 10
ALWAYS = (0.0, float("inf"))
# Of an entry, by AWS's words: a later try may do better; none ever will.
PASSING = ("ThrottlingException", "InternalFailure")
LASTING = ("MalformedDetail", "InvalidArgument")
AWAY = ("EndpointConnectionError", "ConnectTimeoutError", "ThrottlingException")


@dataclass
class BusFaults:
    """What goes wrong with EventBridge.

    Attributes:
        calls: of whole calls.
        throttled: from when to when an entry is refused and may come again, as a probability; those
            beside it are taken or not on their own.
        away: from when to when every call fails, in epoch seconds.
        never: the notifications whose events are refused for ever.
        too_large: those whose events make the bus refuse the whole call.
    """

    calls: AwsFaults = field(default_factory=AwsFaults)
    throttled: Sequence[tuple[float, float, float]] = ()
    away: Sequence[tuple[float, float]] = ()
    never: set[str] = field(default_factory=set)
    too_large: set[str] = field(default_factory=set)


class SimEventBus:
    """Of boto3's EventBridge client, what the adapter calls.

    Attributes:
        on_event: called for every event that is taken.
        published: the details of these, by notification id.
        changes: the details of what was published of templates.
    """

    def __init__(
        self, simulation: Simulation, faults: BusFaults, fails: Callable[[str], AwsError | None]
    ) -> None:
        self.faults = faults
        self.on_event: Callable[[dict[str, Any]], None] = lambda _: None
        self.published: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.changes: list[dict[str, Any]] = []
        self._simulation = simulation
        self._aws = Aws(simulation, faults.calls)
        self._aws.fails = lambda call: self._away() or fails(call)

    def _away(self) -> AwsError | None:
        now = self._simulation.now
        if any(begin <= now < end for begin, end in self.faults.away):
            return AwsError(self._simulation.random.choice(AWAY))
        return None

    def put_events(self, **arguments: Any) -> dict[str, Any]:
        entries = arguments.pop("Entries")
        assert not arguments
        assert 1 <= len(entries) <= MAX_ENTRIES
        return self._aws.call("events.put", lambda: self._put_all(entries), 0.01)

    def _put_all(self, entries: list[dict[str, str]]) -> dict[str, Any]:
        details = [json.loads(entry["Detail"]) for entry in entries]
        if any(detail.get("id") in self.faults.too_large for detail in details):
            raise refused("ValidationException", "PutEvents")
        return {"Entries": [self._put(each) for each in entries]}

    def _put(self, entry: dict[str, str]) -> dict[str, str]:
        """Return the answer to one entry, which does not depend on the entries before it."""
        assert entry.keys() == {"EventBusName", "Source", "DetailType", "Detail"}
        detail = json.loads(entry["Detail"])
        if entry["DetailType"] == TEMPLATE_DETAIL_TYPE:
            self.changes.append(detail)
            return {"EventId": "template"}
        chance = self._simulation.random
        if detail["id"] in self.faults.never:
            return {"ErrorCode": chance.choice(LASTING), "ErrorMessage": "no"}
        now = self._simulation.now
        spells = [share for begin, end, share in self.faults.throttled if begin <= now < end]
        if spells and chance.random() < max(spells):
            return {"ErrorCode": chance.choice(PASSING), "ErrorMessage": "not now"}
        self.published[detail["id"]].append(detail)
        self.on_event(detail)
        return {"EventId": "1"}


# --- What should be there -------------------------------------------------------------------------

# What only BLiP says of a message, which it therefore has taken.
BY_RECEIPT = {"accepted", "dispatched", "waiting", "received", "consumed"}
FAILED_BY_RECEIPT = {"undelivered", "recipient_capped", "opted_out"}
ALL_PUBLISHED = (BY_RECEIPT - {"waiting"}) | {"sent", "failed", "rejected", "expired", "cancelled"}
UNDELIVERED = {"failed", "rejected", "expired"}
# How the key of the item ends that holds what was refused under a notification's id.
REFUSED = ":refused"


@dataclass
class Expected:
    """An event that some write stands for.

    Attributes:
        detail: its fields, but for `event_id` and `stack`.
        record: of the stream, from which it comes.
    """

    detail: dict[str, Any]
    record: int


class StatusEvents:
    """Holds the events against the writes of the ledger."""

    def __init__(self, broken: Callable[[str], None], *, all_receipts: bool) -> None:
        """Set up.

        Args:
            broken: called with each violation.
            all_receipts: `accepted` and `dispatched` are published, too.
        """
        self._broken = broken
        self._published = ALL_PUBLISHED - (set() if all_receipts else {"accepted", "dispatched"})
        # By the item's key and the event's name.
        self._expected: dict[str, dict[str, Expected]] = defaultdict(dict)
        self._seen: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        # The same of items that have outlived their time, and whose ids came again.
        self._past: list[tuple[str, dict[str, Expected], dict[str, dict[str, Any]]]] = []
        self._ids: dict[str, str] = {}

    def written(self, key: str, before: Item, after: Item, record: int) -> None:
        """Take note of what a write stands for."""
        if not after or "forgotten" in after:
            return
        if after.get("restored_at") != before.get("restored_at"):
            return
        swept, anew = not before, "timeline" in before and "timeline" not in after
        if key in self._expected and (swept or anew):
            self._past.append((key, self._expected.pop(key), self._seen.pop(key, {})))
        if key.endswith(REFUSED):
            for refusal in after["refusals"]:
                if refusal not in before.get("refusals", ()):
                    _, reason, at, correlation_id, metadata = refusal
                    about = after | {"metadata": metadata, "correlation_id": correlation_id}
                    self._expect(key, record, _detail(about, "rejected", 0, reason, at))
            return
        for status, generation, at, *_ in self._changes(before, after):
            ended = after["reason"] if status in UNDELIVERED else None
            taken = status in BY_RECEIPT or ended in FAILED_BY_RECEIPT
            if taken and f"sent {generation}" not in self._expected[key]:
                self._expect(key, record, _detail(after, "sent", generation, None, at))
            if status in self._published:
                self._expect(key, record, _detail(after, status, generation, ended, at))

    def _changes(self, before: Item, after: Item) -> list[list[Any]]:
        """Return what a write adds to the timeline, or publishes of what stood there before."""
        timeline: list[list[Any]] = after.get("timeline", [])
        if "template" not in after:  # cancelled in advance: upstream does not know it yet
            return []
        if before and "template" not in before:
            return timeline
        return timeline[len(before.get("timeline", ())) :]

    def _expect(self, key: str, record: int, detail: dict[str, Any]) -> None:
        self._expected[key].setdefault(_name(detail), Expected(detail, record))

    def published(self, detail: dict[str, Any]) -> None:
        """Look at an event that is put on the bus."""
        key, name = _key(detail), _name(detail)
        event_detail = {
            field: detail[field] for field in detail if field not in {"event_id", "stack"}
        }
        expected = self._expected[key].get(name)
        if expected is None:
            self._broken(f"event {name} of {key} stands for nothing in the ledger")
        elif event_detail != expected.detail:
            self._broken(f"event {name} of {key} is {event_detail}, not {expected.detail}")
        self._seen[key].setdefault(name, detail)
        what = f"{key} {detail['status']} {detail['generation']} {detail['reason']}"
        if self._ids.setdefault(detail["event_id"], what) != what:
            self._broken(f"event {name} of {key} has the id of another one")
        if self._ids.setdefault(what, detail["event_id"]) != detail["event_id"]:
            self._broken(f"event {name} of {key} has two ids")

    def keys(self, records: Collection[int]) -> set[str]:
        """Return the keys of the items for whose events these records of the stream stand."""
        return {
            key
            for key, expected in self._expected.items()
            if any(each.record in records for each in expected.values())
        }

    def missing(self, excused: Collection[int]) -> list[str]:
        """Return what never came, or not in its order, except for these records of the stream."""
        broken = []
        present = [(key, expected, self._seen[key]) for key, expected in self._expected.items()]
        for key, expected, seen in self._past + present:
            wanted = [
                name
                for name, each in expected.items()
                if name in seen or each.record not in excused
            ]
            if wanted != list(seen):
                broken.append(f"events of {key}: [{', '.join(seen)}], not [{', '.join(wanted)}]")
        return broken


def _detail(
    item: Item, status: str, generation: int, reason: str | None, milliseconds: int
) -> dict[str, Any]:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return {
        "id": item["id"],
        "bot": item["bot"],
        "status": status,
        "reason": reason,
        "generation": generation,
        "time": moment.isoformat(timespec="milliseconds"),
        "metadata": item.get("metadata", {}),
        "correlation_id": item.get("correlation_id"),
        "category": item.get("category"),
    }


def _is_refusal(detail: dict[str, Any]) -> bool:
    return bool(detail["status"] == "rejected" and detail["generation"] == 0)


def _name(detail: dict[str, Any]) -> str:
    name = f"{detail['status']} {detail['generation']}"
    if detail["reason"]:
        name += f" ({detail['reason']})"
    # An id may be refused as often as it is used, each time for the same reason.
    return f"{name} {detail['time']}" if _is_refusal(detail) else name


def _key(detail: dict[str, Any]) -> str:
    key = ledger_key(detail["bot"], detail["id"])
    return key + REFUSED if _is_refusal(detail) else key
