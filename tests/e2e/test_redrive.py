"""A cause is fixed and what failed goes out, by the commands that the runbook prints."""

import json
import random
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from notifier.domain.notification import ledger_key
from tests.local.machine import PATIENCE_SECONDS, ROOT, wait_until
from tests.local.report import Report
from tests.local.rows import read_rows
from tests.local.stack import LocalStack


@pytest.fixture
def template() -> str:
    """The name of a template that WhatsApp does not know."""
    return f"misspelt_{uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def _clean(stack: LocalStack) -> None:
    assert stack.simulator
    stack.simulator.clear()


def command(stack: LocalStack, *arguments: str) -> str:
    """Run an operator's command against the local stack; what it prints."""
    port = str(urlsplit(stack.aws.url).port)
    run = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "functions.cli", *arguments, "--port-base", port],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def fates(text: str) -> dict[str, int]:
    return {group["outcome"]: group["count"] for group in json.loads(text)["groups"]}


def undelivered(stack: LocalStack, folder: Path, template: str, count: int) -> list[str]:
    """Publish requests with a template that is not there, and wait for them to fail; their ids."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    body = {"name": template, "language": "pt_BR", "body": ["Maria", "981"]}
    # Each recipient is written to once: WhatsApp limits how fast one person may be.
    requests = [
        {"id": one, "to": f"+553198{random.randrange(10**7):07}", "template": body} for one in ids
    ]
    file = folder / "requests.jsonl"
    file.write_text("".join(f"{json.dumps(request)}\n" for request in requests))
    report = Report(stack, read_rows([file]), patience_seconds=PATIENCE_SECONDS)
    assert report.run()
    assert {row.reason for row in report.rows} == {"undelivered"}
    report.letters.give_back()
    return ids


def fix(stack: LocalStack, template: str) -> None:
    """Have the template approved, as WhatsApp's manager would."""
    assert stack.simulator
    approved = {"name": template, "language": "pt_BR", "body": 2, "text": "{{1}} {{2}}"}
    request = urllib.request.Request(  # noqa: S310 - our own simulator
        f"{stack.simulator.url}/_simulator/templates",
        data=json.dumps([approved]).encode(),
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310 - likewise
        assert answer.status == 204


def status(stack: LocalStack, notification_id: str) -> str | None:
    item = stack.aws.dynamodb.get_item(
        TableName=stack.ledger_table,
        Key={"key": {"S": ledger_key("default", notification_id)}},
    )["Item"]
    return item["status"].get("S")


def sent(stack: LocalStack, notification_id: str) -> list[str]:
    assert stack.simulator
    key = ledger_key("default", notification_id)
    return [message["id"] for message in stack.simulator.inbox() if message["id"].startswith(key)]


def test_a_template_is_fixed_and_what_it_failed_is_delivered(
    stack: LocalStack, tmp_path: Path, template: str
) -> None:
    ids = undelivered(stack, tmp_path, template, 3)

    shown = command(stack, "failures", "--template", template, "--each")
    assert "3 of " in shown
    for notification_id in ids:
        assert notification_id in shown
    assert "132001" in shown
    fix(stack, template)
    dry = command(stack, "redrive", "--template", template, "--json")
    assert fates(dry) == {"would_redrive": 3}
    assert "Nothing was put back" in command(stack, "redrive", "--template", template)
    assert {status(stack, notification_id) for notification_id in ids} == {"failed"}

    assert "put back: 3 of" in command(stack, "redrive", "--template", template, "--execute")

    for notification_id in ids:
        wait_until(lambda one=notification_id: status(stack, one) == "consumed", "its reader")  # type: ignore[misc] # a default
        key = ledger_key("default", notification_id)
        assert sent(stack, notification_id) == [key, f"{key}:2"]
    assert fates(command(stack, "failures", "--template", template, "--json")) == {}


def test_what_fails_again_counts_on(stack: LocalStack, tmp_path: Path, template: str) -> None:
    undelivered(stack, tmp_path, template, 1)
    letters: list[dict[str, Any]] = []

    command(stack, "redrive", "--template", template, "--execute")

    def failed_again() -> bool:
        told = command(stack, "failures", "--template", template, "--each", "--json")
        letters[:] = json.loads(told)["dead_letters"]
        return bool(letters)

    wait_until(failed_again, "the next dead letter")
    assert [(letter["generation"], letter["redrives"]) for letter in letters] == [(2, 1)]


def test_the_console_s_own_redrive_sends_once(
    stack: LocalStack, tmp_path: Path, template: str
) -> None:
    """It is a plain sending of the message with all of its attributes."""
    (notification_id,) = undelivered(stack, tmp_path, template, 1)
    fix(stack, template)
    sqs = stack.aws.sqs
    found: list[Any] = []

    def letter() -> Any:
        received = sqs.receive_message(
            QueueUrl=stack.dead_letters_queue,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            VisibilityTimeout=1,
        )
        found[:] = [m for m in received.get("Messages", []) if notification_id in m["Body"]]
        return found

    wait_until(letter, "the letter")
    (message,) = found
    assert set(message["MessageAttributes"]) >= {"reason", "failure", "failed_at", "generation"}

    for _ in range(2):
        sqs.send_message(
            QueueUrl=stack.requests_queue,
            MessageBody=message["Body"],
            MessageAttributes=message["MessageAttributes"],
        )
    sqs.delete_message(QueueUrl=stack.dead_letters_queue, ReceiptHandle=message["ReceiptHandle"])

    wait_until(lambda: status(stack, notification_id) == "consumed", "its reader")
    key = ledger_key("default", notification_id)
    assert sent(stack, notification_id) == [key, f"{key}:2"]
