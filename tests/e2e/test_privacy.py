"""Known numbers, parameters and keys go through every path; nothing that comes out holds them."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.local.machine import PATIENCE_SECONDS, STATE, free_ports, wait_until
from tests.local.report import Report
from tests.local.rows import read_rows
from tests.local.stack import LocalStack

NAME = "Zulmira Canário"
COUPON = "GEHEIM-4711"
# Numbers of the simulator that always do the same; `python -m tests.local.blip --help` lists them.
CAPPED = "gets no more marketing"
WAYS = {
    "is delivered": "+5531900003001",
    "cannot be reached": "+5531900000026",
    CAPPED: "+5531900000049",
    "may have been sent": "+5531900000086",
    "is no phone number": "+5531900000061",
    "is not on WhatsApp": "+5531900000067",
    "needs a second look-up": "+5531900000085",
    "needs a second send": "+5531900000503",
    "loses the answer": "+5531900000504",
    "loses the connection": "+5531900000445",
    "gets too much": "+5531900000429",
}
SHORT = {
    "CooldownSeconds": "1",
    "SettleWindowSeconds": "1",
    "BackoffBaseSeconds": "1",
    "BackoffMaxSeconds": "1",
    "BreakerWaitSeconds": "1",
    "PublishAllReceipts": "true",
}


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    port = free_ports(2)
    with LocalStack(port_base=port, parameters=SHORT) as running:
        yield running
    shutil.rmtree(STATE / str(port))


@pytest.fixture(scope="module")
def told(stack: LocalStack) -> str:
    """The URL of a queue that a rule sends every status event to."""
    events: Any = stack.aws.client("events")
    queue: str = stack.aws.sqs.create_queue(QueueName="told")["QueueUrl"]
    attributes = stack.aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    events.put_rule(Name="told", EventPattern=json.dumps({"source": ["blip-notifier"]}))
    arn = attributes["Attributes"]["QueueArn"]
    events.put_targets(Rule="told", Targets=[{"Id": "queue", "Arn": arn}])
    return queue


def requests() -> list[str]:
    template = {
        "name": "order_shipped",
        "language": "pt_BR",
        "body": [NAME, "981"],
    }
    coupon = {
        "name": "discount_coupon",
        "language": "pt_BR",
        "body": [NAME],
        "buttons": [{"type": "copy_code", "coupon": COUPON}],
    }
    # What is unknown ends without a later message, which sending again would wait for.
    good = [
        {"id": f"way-{n}", "to": to, "template": template, "if_unknown": "fail"}
        for n, to in enumerate(WAYS.values())
    ]
    # Else it would wait for a day.
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")
    good = [one | ({"valid_until": soon} if one["to"] == WAYS[CAPPED] else {}) for one in good]
    first = good[0]
    broken: list[dict[str, Any]] = [
        first | {"id": "coupon", "template": coupon},
        first | {"template": coupon},  # another content under the first one's id
        first | {"id": "no-such-bot", "bot": "no-such-bot"},
        first | {"id": "too-late", "valid_until": "2026-01-31T18:00:00-03:00"},
        first | {"id": "typo", "template": template | {"boddy": [NAME]}},
        first | {"id": "wrong", "template": template | {"name": "no_such_template"}},
        first | {"id": "no-number", "to": WAYS["is delivered"][1:]},
        {WAYS["is delivered"]: NAME},
    ]
    bodies = [json.dumps(one, ensure_ascii=False) for one in (*good, *broken)]
    return [*bodies, f"{WAYS['is delivered']} {NAME}"]


def everything_on(stack: LocalStack, queue: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    while some := stack.aws.sqs.receive_message(
        QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
    ).get("Messages"):
        messages += some  # type: ignore[arg-type] # plain dicts
    return messages


def test_no_number_no_parameter_and_no_key_comes_out(
    stack: LocalStack, told: str, tmp_path: Path
) -> None:
    assert stack.simulator
    assert stack.ministack
    secrets = [
        stack.aws.secrets.get_secret_value(SecretId=stack.resources[name])["SecretString"]
        for name in ("BotsSecret", "WebhookSecret")
    ]
    keys = [bot["key"].removeprefix("Key ") for bot in json.loads(secrets[0]).values()]
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(f"{body}\n" for body in requests()))

    report = Report(stack, read_rows([file]), patience_seconds=PATIENCE_SECONDS)
    assert report.run()

    reasons = {row.reason for row in report.rows} - {None}
    assert reasons >= {
        "malformed", "invalid", "unknown_bot", "id_conflict", "expired",
        "not_a_phone_number", "undelivered", "recipient_capped",
    }  # fmt: skip
    letters = everything_on(stack, stack.dead_letters_queue)
    events: list[dict[str, Any]] = []

    def heard() -> bool:
        events.extend(everything_on(stack, told))
        return len(events) >= len(WAYS)

    wait_until(heard, "the status events, which come a second later")
    ledger = stack.aws.dynamodb.scan(TableName=stack.ledger_table)["Items"]
    log = stack.ministack.log
    wait_until(lambda: '"receipt_dead_letter"' in log.read_text(), "the last metrics")
    came_out = {
        "logs and metrics": log.read_text(),
        "status events": json.dumps(events, ensure_ascii=False),
        "attributes of dead letters": json.dumps(
            [letter["MessageAttributes"] for letter in letters], ensure_ascii=False
        ),
        "the ledger, of what was delivered": json.dumps(
            [item for item in ledger if item["status"]["S"] in {"received", "consumed"}],
            ensure_ascii=False,
        ),
    }
    assert len(letters) >= 8
    assert '"status"' in came_out["the ledger, of what was delivered"]
    hidden = [number[3:] for number in WAYS.values()]
    for where, text in came_out.items():
        for secret in (NAME, NAME.encode("unicode_escape").decode(), COUPON, *hidden, *keys):
            assert secret not in text, f"{secret} is in {where}"
        assert secrets[1] not in text
