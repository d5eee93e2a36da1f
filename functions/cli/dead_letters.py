"""`failures` and `redrive`: what lies on the dead-letter queue, and putting it back."""

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from functions.cli import output, words
from functions.cli.arguments import age, count, json_argument
from functions.cli.stack import Json, Resources, Stack, on_stack, stack_arguments
from notifier.aws.queues import DeadLettersQueue, RequestsQueue
from notifier.entrypoints.environment import SystemClock
from notifier.use_cases.redrive_failures.orders import REASONS, ListOrder, RedriveOrder
from notifier.use_cases.redrive_failures.redrive import MAX_THREADS, Redrive
from notifier.use_cases.redrive_failures.report import RedriveOutcome, Report

_SHOWN = {
    RedriveOutcome.WOULD_REDRIVE: "would go",
    RedriveOutcome.REDRIVEN: "put back",
    RedriveOutcome.REFUSED: "refused",
    RedriveOutcome.NOT_TAKEN: "not taken by SQS",
}
_GROUP = ["reason", "bot", "template", "count", "oldest", "newest"]
_EACH = [
    *("id", "bot", "template", "reason", "code", "detail", "failed_at", "generation", "redrives"),
]
# Fewer are scanned within seconds.
LONG_RUN = 1000


def redrive(stack: Resources, order: ListOrder, progress: Callable[[int, int], None]) -> Report:
    """List dead letters, or put them back.

    Args:
        stack: whose.
        order: which ones, and what to do with them.
        progress: called with the dead letters scanned so far, and with about how many there are.
    """
    sqs = stack.client("sqs")
    dead_letters = stack.physical_id("DeadLettersQueue")
    with ThreadPoolExecutor(MAX_THREADS) as threads:
        return Redrive(
            dead_letters=DeadLettersQueue(sqs, dead_letters, SystemClock.now),
            requests=RequestsQueue(sqs, stack.physical_id("RequestsQueue")),
            clock=SystemClock(),
            threads=threads,
            progress=progress,
        ).run(order)


@on_stack
def run_failures(stack: Stack, options: argparse.Namespace) -> int:
    """Show what lies on the dead-letter queue."""
    answer = _answer(stack, ListOrder(**_selection(options)))
    if options.json:
        output.print_json(answer)
        return 0
    _show(answer, _GROUP, _EACH)
    output.say(f"{_counted(answer, RedriveOutcome.LISTED)}{_beside(answer)}")
    return 0


@on_stack
def run_redrive(stack: Stack, options: argparse.Namespace) -> int:
    """Put dead letters back on the requests queue, or show which ones would go."""
    order = RedriveOrder(
        **_selection(options),
        limit=options.limit,
        dry_run=not options.execute,
        force=options.force,
    )
    answer = _answer(stack, order)
    not_taken = any(group["outcome"] == RedriveOutcome.NOT_TAKEN for group in answer["groups"])
    if options.json:
        output.print_json(answer)
        return 1 if not_taken else 0
    _show(answer, ["what", *_GROUP, "why"], [*_EACH, "what", "why"])
    if options.execute:
        output.say(f"put back: {_counted(answer, RedriveOutcome.REDRIVEN)}{_beside(answer)}")
    else:
        output.say(f"would go: {_counted(answer, RedriveOutcome.WOULD_REDRIVE)}{_beside(answer)}")
        again = words.argument("--execute")
        output.say(f"Nothing was put back: this was a dry run. {again} puts them back.")
    return 1 if not_taken else 0


def failures_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `failures` takes."""
    add = parser.add_argument
    reasons = "only of these reasons (events/README.md)"
    add("--reason", nargs="+", action="extend", type=_reason, metavar="REASON", help=reasons)
    add("--bot", help="only of this bot")
    add("--template", help="only with this template")
    add("--id", nargs="+", action="extend", help="only of the notifications with these ids")
    add("--older-than", type=age, metavar="AGE", help="that failed earlier, as in 30m, 2h, 3d")
    add("--newer-than", type=age, metavar="AGE", help="that failed later")
    add("--each", action="store_true", help="show each dead letter")
    json_argument(parser)
    stack_arguments(parser)


def redrive_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `redrive` takes."""
    add = parser.add_argument
    add("--execute", action="store_true", help="put them back; without it nothing changes")
    add("--limit", type=count, metavar="N", help="put back at most so many")
    add("--force", action="store_true", help="also what cannot succeed as it is")
    failures_arguments(parser)


def _reason(text: str) -> str:
    if text not in REASONS:
        raise argparse.ArgumentTypeError(f"{text!r} is no reason: there are {', '.join(REASONS)}")
    return text


def _selection(options: argparse.Namespace) -> Json:
    return {
        "reasons": options.reason or REASONS,
        "bot": options.bot,
        "template": options.template,
        "ids": options.id,
        "minimum_age_seconds": options.older_than,
        "maximum_age_seconds": options.newer_than,
        "each": options.each,
    }


def _answer(stack: Stack, order: ListOrder) -> Json:
    with output.progress() as show:

        def progress(scanned: int, depth: int) -> None:
            if depth >= LONG_RUN:
                show(f"{scanned} of about {depth} scanned")

        return redrive(stack, order, progress).as_json()


def _show(answer: Json, group: list[str], each: list[str]) -> None:
    if not answer["groups"]:
        return
    _table(group, answer["groups"])
    if "dead_letters" in answer:
        output.say()
        _table(each, answer["dead_letters"])
    output.say()


def show_each(letters: list[Json]) -> None:
    """Show dead letters one by one."""
    _table(_EACH, letters)


def _table(columns: list[str], found: list[Json]) -> None:
    rows = [_row(one, columns) for one in found]
    output.table([column.replace("_", " ") for column in columns], rows)


def _row(found: Json, columns: list[str]) -> list[str]:
    shown = found | {"what": _SHOWN.get(found["outcome"])}
    shown |= {name: output.ago(found[name]) for name in ("oldest", "newest") if name in found}
    if len(shown.get("fields", ())) > 1:  # one of them is the detail
        shown["detail"] = "; ".join(shown["fields"])
    if shown.get("id", "") is None:
        shown["id"] = "(no id)"
    return ["-" if shown[column] is None else str(shown[column]) for column in columns]


def _counted(answer: Json, outcome: RedriveOutcome) -> str:
    number = sum(group["count"] for group in answer["groups"] if group["outcome"] == outcome)
    return f"{number} of {answer['scanned']} dead letters"


def _beside(answer: Json) -> str:
    beside = ""
    if answer["more"]:
        beside += "; there are more than one run can scan"
    if answer["in_flight"]:
        beside += (
            f"; about {answer['in_flight']} more were in flight, in another run or after one that"
            " broke off: they are visible again within five minutes"
        )
    return beside
