"""`status`: one screen about a stack: bots, queues, dead letters, alarms, the last hour."""

import argparse
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from functions.cli import bots, output
from functions.cli.arguments import json_argument
from functions.cli.bots import Standing
from functions.cli.dead_letters import LONG_RUN, redrive
from functions.cli.stack import Json, Stack, on_stack, stack_arguments
from notifier.use_cases.redrive_failures.orders import ListOrder

QUEUES = {
    "requests": "RequestsQueue",
    "dead letters": "DeadLettersQueue",
    "receipts": "ReceiptsQueue",
    "receipts not recorded": "ReceiptsDeadLettersQueue",
    "status events not published": "UnpublishedQueue",
}
NAMESPACE = "BlipNotifier"
RUNBOOK = "functions/README.md"
# A metric is a few minutes late, and the age of an empty queue is not measured.
NEWEST_MINUTES = 15
# One for each of what is asked for: a distant region takes a fifth of a second to answer.
THREADS = 4 + len(QUEUES)


@on_stack
def run_status(stack: Stack, options: argparse.Namespace) -> int:
    """Show how a stack is: bots, queues, dead letters, alarms, the last hour."""
    answer = _collect(stack)
    if options.json:
        output.print_json(answer)
    else:
        _show(stack, answer)
    return 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `status` takes."""
    json_argument(parser)
    stack_arguments(parser)


# --- what is collected ----------------------------------------------------------------------------


def _collect(stack: Stack) -> Json:
    resources = stack.resources()
    with ThreadPoolExecutor(THREADS) as threads:
        measuring = threads.submit(_metrics, stack, resources)
        standings = threads.submit(_standings, stack)
        alarms = threads.submit(_alarms, stack, resources)
        depths = {
            name: threads.submit(_depth, stack, resources[logical_id])
            for name, logical_id in QUEUES.items()
        }
        dead_letters = threads.submit(_dead_letters, stack, depths["dead letters"])
    measured = measuring.result()
    return {
        "stack": stack.name,
        "where": stack.endpoint or stack.session.region_name,
        "bots": [_bot(stands) for stands in standings.result()],
        "queues": [
            _queue(name, depths[name].result(), measured.get(logical_id))
            for name, logical_id in QUEUES.items()
        ],
        "dead_letters": dead_letters.result(),
        "alarms": alarms.result(),
        "receipts_late_seconds": measured.get("receipts_late"),
        "last_hour": {name: measured.get(name, 0) for name in ("sent", "delivered")},
        "links": _links(stack, resources),
    }


def _standings(stack: Stack) -> list[Standing]:
    return [bots.standing(stack, name, bot) for name, bot in sorted(bots.all_bots(stack).items())]


def _bot(stands: Standing) -> Json:
    return {
        "name": stands.name,
        "ready": not stands.holds,
        "holds": stands.holds,
        "paused_since": stands.paused_since and output.moment(stands.paused_since),
        "throttled_until": stands.throttled_until and output.moment(stands.throttled_until),
        "breaker": stands.breaker or None,
        "problem": stands.problem or None,
        "shares": stands.shares,
        "paused_templates": list(stands.paused_templates),
    }


def _depth(stack: Stack, url: str) -> list[int]:
    """Return how many messages of a queue wait, are in flight, and are delayed."""
    counts = ("", "NotVisible", "Delayed")
    attributes = [f"ApproximateNumberOfMessages{which}" for which in counts]
    answer = stack.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=attributes)
    return [int(answer["Attributes"][which]) for which in attributes]


def _queue(name: str, depth: list[int], oldest_seconds: float | None) -> Json:
    waiting, in_flight, delayed = depth
    return {
        "name": name,
        "waiting": waiting + delayed,
        "in_flight": in_flight,
        # The age of what has just been taken off is measured for some minutes more.
        "oldest_seconds": oldest_seconds if waiting + in_flight + delayed else None,
    }


def _dead_letters(stack: Stack, measuring: Future[list[int]]) -> list[Json] | None:
    """Return the dead letters by reason; None if there are too many to look at in a moment.

    They are looked at once their queue is measured, because looking puts them in flight.
    """
    depth = sum(measuring.result())
    if depth > LONG_RUN:
        return None
    groups = redrive(stack, ListOrder(), lambda *_: None).as_json()["groups"] if depth else []
    by_reason: dict[str, Json] = {}
    for group in groups:
        new = {"reason": group["reason"], "count": 0, "oldest": group["oldest"]}
        found = by_reason.setdefault(group["reason"], new)
        found["count"] += group["count"]
        found["oldest"] = min(found["oldest"], group["oldest"])
    return list(by_reason.values())


def _alarms(stack: Stack, resources: dict[str, str]) -> list[Json]:
    """Return the stack's alarms that ring; the account may have others."""
    logical = {physical: name for name, physical in resources.items()}
    pages = stack.client("cloudwatch").get_paginator("describe_alarms")
    return [
        {
            "name": logical[alarm["AlarmName"]],
            "description": alarm.get("AlarmDescription", ""),
            "since": f"{alarm['StateUpdatedTimestamp'].astimezone(UTC):%FT%TZ}",
        }
        for page in pages.paginate(StateValue="ALARM")
        for alarm in page["MetricAlarms"]
        if alarm["AlarmName"] in logical
    ]


def _metrics(stack: Stack, resources: dict[str, str]) -> dict[str, float]:
    """Return what CloudWatch has measured: ages of queues, lags, what the last hour has seen.

    What was not measured is left out.
    """
    service = {"Name": "service", "Value": stack.name}
    asked: dict[str, tuple[str, str, dict[str, str], str]] = {
        logical_id: (
            "AWS/SQS",
            "ApproximateAgeOfOldestMessage",
            {"Name": "QueueName", "Value": resources[logical_id].rpartition("/")[2]},
            "Maximum",
        )
        for logical_id in QUEUES.values()
    } | {
        "receipts_late": (NAMESPACE, "receipts_late", service, "Maximum"),
        "sent": (NAMESPACE, "sent", service, "Sum"),
        # It is measured once for each message that reached its recipient.
        "delivered": (NAMESPACE, "sent_to_received", service, "SampleCount"),
    }
    now = datetime.fromtimestamp(time.time(), UTC)
    answer = stack.client("cloudwatch").get_metric_data(
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(minutes=1),
        ScanBy="TimestampDescending",
        MetricDataQueries=[
            {
                "Id": f"m{number}",
                "Label": name,
                "MetricStat": {
                    "Metric": {"Namespace": namespace, "MetricName": metric, "Dimensions": [about]},
                    "Period": 60,
                    "Stat": statistic,
                },
            }
            for number, (name, (namespace, metric, about, statistic)) in enumerate(asked.items())
        ],
    )
    newest = now - timedelta(minutes=NEWEST_MINUTES)
    measured = {}
    for result in answer["MetricDataResults"]:
        name = list(asked)[int(result["Id"][1:])]
        if name in {"sent", "delivered"}:
            measured[name] = sum(result["Values"])
        elif result["Values"] and result["Timestamps"][0] >= newest:
            measured[name] = result["Values"][0]
    return measured


def _links(stack: Stack, resources: dict[str, str]) -> dict[str, str]:
    if stack.endpoint:
        host, _, port = stack.endpoint.rpartition(":")
        return {"console": f"{host}:{int(port) + 1}/", "runbook": RUNBOOK}
    region = stack.session.region_name
    name = quote(resources["Dashboard"], safe="")
    return {
        "dashboard": f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}"
        f"#dashboards/dashboard/{name}",
        "runbook": RUNBOOK,
    }


# --- how it is shown ------------------------------------------------------------------------------


def _show(stack: Stack, answer: Json) -> None:
    output.title(f"{answer['stack']} {'at' if stack.endpoint else 'in'} {answer['where']}")
    output.say()
    output.title("bots")
    output.facts({bot["name"]: _bot_as_text(bot) for bot in answer["bots"]}, indent=2)
    for bot in answer["bots"]:
        if bot["paused_since"]:
            command = stack.command("resume", f"BOT={bot['name']}")
            output.next_step(f"Resume {bot['name']}", command)
    output.say()
    output.table(
        ["queue", "waiting", "in flight", "oldest"], [_queue_row(one) for one in answer["queues"]]
    )
    output.say()
    if answer["dead_letters"]:
        rows = [
            [one["reason"], str(one["count"]), output.ago(one["oldest"])]
            for one in answer["dead_letters"]
        ]
        output.table(["dead letters", "count", "oldest"], rows)
    if answer["dead_letters"] != []:
        output.next_step("See each dead letter", stack.command("failures", "", ["--each"]))
        output.say()
    for alarm in answer["alarms"]:
        output.block(
            f"{alarm['name']} rings", {"since": alarm["since"], "why": alarm["description"]}
        )
        output.say()
    if not answer["alarms"]:
        output.say("No alarm rings.")
        output.say()
    hour, late = answer["last_hour"], answer["receipts_late_seconds"]
    output.facts(
        {
            "last hour": f"{hour['sent']:,.0f} sent, {hour['delivered']:,.0f} delivered",
            "receipts": f"asked for {output.duration(late)} late" if late else "not late",
            **answer["links"],
        }
    )


def _bot_as_text(bot: Json) -> str:
    state = ", and ".join(bot["holds"]) or "is ready"
    shares = bot["shares"]
    if shares:
        state += f"; of its plan {bots.shares_as_text(shares)}"
    if paused := bot["paused_templates"]:
        state += f"; WhatsApp has paused {', '.join(paused)}"
    return state


def _queue_row(queue: Json) -> list[str]:
    age = queue["oldest_seconds"]
    oldest = "-" if age is None else output.duration(age)
    return [queue["name"], f"{queue['waiting']:,}", f"{queue['in_flight']:,}", oldest]
