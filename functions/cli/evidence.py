"""`notification --evidence`: what the tables hold about a single send, beyond its status."""

import shlex
from typing import Any

from functions.cli import output
from functions.cli.bots import identities
from functions.cli.stack import Json, Resources, Stack
from notifier.aws.bot_items import bot_key, bot_state
from notifier.aws.table import Item, Table
from notifier.domain.notification import ledger_key, message_id
from notifier.domain.status import Status

type Evidence = dict[str, Any]


def collect(stack: Resources, bot: str, notification_id: str) -> Evidence:
    """Return what explains a send, by name. Neither number nor parameters are among it."""
    key = ledger_key(bot, notification_id)
    item = Table(stack.client("dynamodb"), stack.physical_id("LedgerTable")).get(key)
    slot = bot_state(identities(stack).get(bot_key(bot))).next_message_at
    evidence: Evidence = {"key": key}
    if item:
        evidence |= _of_item(key, item)
    else:
        evidence["claim"] = "none: the request was refused before it could be claimed"
    evidence["next_slot_of_the_bot"] = output.moment(slot) if slot else "none was ever reserved"
    return evidence


def _of_item(key: str, item: Item) -> Evidence:
    generations = range(1, item["generation"] + 1)
    evidence: Evidence = {
        "message_ids_at_blip": [message_id(key, generation) for generation in generations],
        "claim": _claim(item),
        "answer": _answer(item),
        "history": _history(item),
        "receipts": _receipts(item),
    }
    if item.get("redrives"):
        times = output.plural(item["redrives"], "time")
        evidence["redrives"] = f"an operator had put it back {times}"
    if "waits" in item:
        evidence["waits"] = ", ".join(item["waits"])
    if "wake_at" in item:
        evidence["waits_until"] = _at(item["wake_at"])
    if "restored_at" in item:
        evidence["restored"] = f"copied back from a backup at {_at(item['restored_at'])}"
    if "forgotten" in item:
        evidence["forgotten"] = "the recipient was: all but status and times is erased"
    evidence["kept_until"] = output.moment(item["expires_at"])
    return evidence


def _claim(item: Item) -> str:
    attempts = output.plural(item.get("attempts", 0), "attempt")
    tried = f"{attempts} in generation {item['generation']}"
    if "token" not in item:
        return f"{tried}; no sandbox holds it"
    return f"{tried}; a sandbox holds it until {_at(item['lease_until'])}"


def _answer(item: Item) -> str:
    """Return what BLiP answered to the send of this generation, as far as it is recorded."""
    sent = _times(item, Status.SENT)
    if sent:
        return f"BLiP took the message at {sent[-1]}"
    match item["status"]:
        case Status.SENDING:
            return f"none yet: the send may be under way until {_at(item['lease_until'])}"
        case Status.UNKNOWN:
            return f"none: it may have gone out until {_at(item['in_flight_until'])}"
        case Status.FAILED | Status.REJECTED | Status.EXPIRED:
            code = f", code {item['code']}" if item.get("code") is not None else ""
            return f"it ended as {item['reason']}{code}"
        case _:
            return "none is recorded"


def _history(item: Item) -> str:
    """Return what BLiP's event history said of the send of this generation."""
    said = []
    if denials := item.get("denials"):
        said.append(f"it denied the send {output.plural(denials, 'time')}")
    if "control" in item:
        said.append(
            f"to deny it, it has to show {item['control']}, sent at {_at(item['control_at'])}"
        )
    if said:
        return "; ".join(said)
    if item["status"] == Status.UNKNOWN:
        return "it has not settled the outcome yet"
    if _times(item, Status.UNKNOWN):
        return "it, or a receipt, settled an unknown outcome"
    return "it was not asked about the outcome"


def _receipts(item: Item) -> list[str]:
    receipts = [
        f"{status} at {_at(at)}, generation {generation}"
        for status, generation, at, _ in item.get("timeline", ())
        if status in {Status.ACCEPTED, Status.DISPATCHED, Status.RECEIVED, Status.CONSUMED}
    ]
    receipts += [
        f"{status} at {_at(at)}, generation {generation}: too late to change anything"
        for status, generation, at, _ in item.get("late", ())
    ]
    if "poll_at" in item:
        receipts.append(f"BLiP's history is asked for the next one at {_at(item['poll_at'])}")
    return receipts or ["none"]


def _times(item: Item, status: Status) -> list[str]:
    return [
        _at(at)
        for name, generation, at, _ in item.get("timeline", ())
        if name == status and generation == item["generation"]
    ]


def _at(milliseconds: int) -> str:
    return output.moment(milliseconds / 1000)


def show(stack: Stack, evidence: Evidence) -> None:
    """Show the evidence, and how to read the log of it."""
    output.facts({name.replace("_", " "): fact for name, fact in evidence.items()})
    output.say()
    output.next_step("What the functions logged about it", _log_command(stack, evidence))


def _log_command(stack: Stack, evidence: Json) -> str:
    if stack.endpoint:
        port = stack.endpoint.rpartition(":")[2]
        return f"grep {evidence['key']} .local/{port}/ministack.log"
    group = shlex.quote(stack.physical_id("SendNotificationLogs"))
    pattern = shlex.quote(f'{{ $.key = "{evidence["key"]}" }}')
    return f"aws logs tail {group} --since 1d --filter-pattern {pattern}"
