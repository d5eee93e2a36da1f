"""The whole product: built, deployed into the local AWS, and fed through the requests queue."""

import contextlib
import http.client
import itertools
import json
import os
import pty
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from jsonschema import Draft202012Validator, FormatChecker

from notifier.domain.notification import ledger_key
from tests.e2e.running import COMMAND, processes_of, running_command
from tests.local.__main__ import main
from tests.local.aws import REGION
from tests.local.blip import Bot, Simulator
from tests.local.machine import HOST, PATIENCE_SECONDS, ROOT, require_free, wait_until
from tests.local.report import Report
from tests.local.rows import as_expected, expected_reason, read_rows
from tests.local.stack import LocalStack

SAMPLES = sorted((ROOT / "events").glob("*.json"))


# Enough to be on their way for some seconds.
MANY = 200
# A recipient for each request: between tests the simulator forgets whom it gave out, we do not.
NUMBERS = itertools.count(3100)


def request(**changes: Any) -> dict[str, Any]:
    template = {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981"]}
    to = f"+553190000{next(NUMBERS)}"
    return {"id": str(uuid.uuid4()), "to": to, "template": template} | changes


def publish(stack: LocalStack, folder: Path, *requests: dict[str, Any]) -> Report:
    """Publish requests and wait until all have ended."""
    file = folder / f"{uuid.uuid4()}.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in requests))
    return follow(stack, file)


def follow(stack: LocalStack, *files: Path) -> Report:
    report = Report(stack, read_rows(files), patience_seconds=PATIENCE_SECONDS)
    assert report.run()
    return report


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def run_at_a_terminal(*arguments: object, output: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with its output in a file; what it says meanwhile goes to a terminal."""
    person, terminal = pty.openpty()
    with output.open("w") as to:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*COMMAND, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm"},
            stdout=to,
            stderr=terminal,
        )
    os.close(terminal)
    seen = b""
    # Reading a terminal whose other side is closed is an error.
    with contextlib.suppress(OSError):
        while some := os.read(person, 65536):
            seen += some
    os.close(person)
    return subprocess.CompletedProcess(
        process.args, process.wait(), output.read_text(), seen.decode()
    )


def inbox(stack: LocalStack, **query: str) -> list[dict[str, Any]]:
    assert stack.simulator
    return stack.simulator.inbox(**query)


# --- the command ----------------------------------------------------------------------------------


def test_once_publishes_the_samples_and_each_ends_as_its_name_says(port_base: int) -> None:
    run = run_command("--once", "--json", "--port-base", port_base)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["line"] for row in rows] == list(range(1, len(SAMPLES) + 1))
    for sample, row in zip(SAMPLES, rows, strict=True):
        expected = expected_reason(sample.name)
        assert row["reason"] == expected, sample.name
        assert (row["status"] == "consumed") == (expected is None), sample.name
        assert set(row) == {
            "line", "id", "bot", "status", "reason", "attempts", "published_at", "ended_at",
        }  # fmt: skip
        assert row["published_at"].endswith("Z")
        assert row["published_at"] <= row["ended_at"]
    require_free(port_base)
    require_free(port_base + 1)


def test_a_file_of_lines_goes_to_another_blip_as_it_stands(tmp_path: Path, port_base: int) -> None:
    good = json.dumps(request(id="good"))
    lines = [
        good.encode(),
        b"{",
        b"{",
        json.dumps(request(id="good", to="+5531900002001")).encode(),
        b"",
        b"\xff",
        b'{"id": "\x01"}',
        good.encode(),
        json.dumps(request(id="other", bot="clinic")).encode(),
        json.dumps(request(id="impossible", to="+551")).encode(),
    ]
    many = [str(number) for number in range(MANY)]
    lines += [json.dumps(request(id=one)).encode() for one in many]
    file = tmp_path / "requests.jsonl"
    file.write_bytes(b"\n".join(lines))
    # It is not this test's to keep a plan while others are at work on the machine.
    without_plan = Bot(messages_per_second=None, commands_per_second=None)
    with Simulator(bots=[without_plan]) as blip:
        run = run_at_a_terminal(
            *("--once", "--json", "--publish", file, "--blip", blip.url, "--key", blip.key),
            *("--port-base", port_base),
            *("--parameter", "MaximumConcurrency=2", "FunctionTimeoutSeconds=40"),
            output=tmp_path / "output",
        )
        sent = blip.inbox()
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(row["id"], row["bot"], row["status"], row["reason"]) for row in rows] == [
        ("good", "default", "sent", None),
        (None, None, "rejected", "malformed"),
        (None, None, "rejected", "malformed"),
        ("good", "default", "rejected", "id_conflict"),
        (None, None, "rejected", "malformed"),
        (None, None, "rejected", "malformed"),
        (None, None, "rejected", "malformed"),
        ("good", "default", "sent", None),
        ("other", "clinic", "rejected", "unknown_bot"),
        ("impossible", "default", "rejected", "invalid"),
        *((one, "default", "sent", None) for one in many),
    ]
    assert [row["line"] for row in rows] == list(range(1, len(lines) + 1))
    assert sorted(message["id"] for message in sent) == sorted(
        ledger_key("default", one) for one in ("good", *many)
    )
    for line in (5, 6, 7):
        assert f"requests.jsonl:{line} cannot be put on a queue" in run.stderr
    assert {len(lines)} < progress(run.stderr, "ended", len(lines))
    assert MANY + 2 in progress(run.stderr, "sent", MANY + 2)
    without_colours = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", run.stderr)
    figures = dict(re.findall(r"(?m)^  (\w+(?: \w+)?) +(\d+)\r?$", without_colours))
    assert int(figures.pop("in all")) == len(lines)
    assert sum(map(int, figures.values())) == len(lines)


def progress(seen: str, what: str, total: int) -> set[int]:
    """Return the counts to which a bar on a terminal has gone."""
    without_colours = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen)
    counts = re.findall(rf"{what} +\S+ +(\d+)/{total} ", without_colours)
    return set(map(int, counts))


@pytest.mark.parametrize(("end", "code"), [("terminate", 143), ("kill", -9)])
def test_nothing_survives_it_however_it_ends(
    tmp_path: Path, port_base: int, end: str, code: int
) -> None:
    output = tmp_path / "output"
    with running_command(port_base, output) as process:
        wait_until(lambda: "Local AWS" in output.read_text(), "the local AWS to be up")
        assert processes_of(port_base)
        getattr(process, end)()
        assert process.wait(PATIENCE_SECONDS) == code
        wait_until(lambda: not processes_of(port_base), "everything to have ended")


def test_a_port_in_use_is_said_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--once", "--port-base", str(port - 1)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: port {port} cannot be used")
    assert "--port-base" in message


def test_a_failed_deployment_shows_why_and_where_the_log_is(
    capsys: pytest.CaptureFixture[str], port_base: int
) -> None:
    assert (
        main(["--once", "--port-base", str(port_base), "--parameter", "MaximumConcurrency=1"]) == 1
    )
    message = capsys.readouterr().err
    assert "`sam deploy` failed" in message
    assert f".local/{port_base}/sam-deploy.log" in message
    assert "MaximumConcurrency" in message


def test_a_misspelt_parameter_does_not_vanish(
    capsys: pytest.CaptureFixture[str], port_base: int
) -> None:
    assert main(["--once", "--port-base", str(port_base), "--parameter", "MaxConcurrency=3"]) == 1
    assert "no parameter MaxConcurrency; it has" in capsys.readouterr().err


def test_a_key_that_cannot_be_one_is_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--once", "--blip", "http://127.0.0.1:9", "--key", "two words"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: --blip and --key cannot be used: bot default")
    assert "two words" not in message


# --- the product ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> None:
    """Take off the queues what earlier tests have left there, visible or not."""
    if "stack" in request.fixturenames:
        stack: LocalStack = request.getfixturevalue("stack")
        simulator = stack.simulator
        assert simulator
        for queue in ("RequestsQueue", "ReceiptsQueue", "DeadLettersQueue"):
            stack.aws.sqs.purge_queue(QueueUrl=stack.resources[queue])
        simulator.clear()
        simulator.configure(latency_seconds=0)


KINDS = {
    "01-text.json": ["body"],
    "02-image.json": ["header", "body"],
    "03-video.json": ["header"],
    "04-document.json": ["header", "body"],
    "05-quick-reply.json": ["body", "button", "button"],
}


def test_the_six_kinds_of_request_arrive(stack: LocalStack) -> None:
    report = follow(stack, *(ROOT / "events" / name for name in KINDS))
    assert all(map(as_expected, report.rows))
    assert stack.simulator
    lookups = stack.simulator.statistics()["lookups"]
    for row, parts in zip(report.rows, KINDS.values(), strict=True):
        assert row.parsed
        assert row.key
        [message] = inbox(stack, id=row.key)
        assert message["template"] == row.template
        assert message["phone"] == row.parsed.request.to
        assert [component["type"].lower() for component in message["components"]] == parts
        # The sixth is the look-up itself.
        assert lookups[row.parsed.request.to] == 1
    media = {
        message["components"][0]["parameters"][0]["type"]: message
        for message in inbox(stack)
        if message["components"][0]["type"].lower() == "header"
    }
    assert set(media) == {"image", "video", "document"}


def test_a_request_that_is_published_five_times_is_sent_once(
    stack: LocalStack, tmp_path: Path
) -> None:
    wanted = request()
    report = publish(stack, tmp_path, *[wanted] * 5)
    assert [(row.status, row.reason) for row in report.rows] == [("consumed", None)] * 5
    wait_until(lambda: queue_depth(stack) == 0, "the repetitions to be taken off the queue")
    assert len(inbox(stack, id=ledger_key("default", wanted["id"]))) == 1
    assert len(inbox(stack)) == 1


def test_twenty_requests_for_one_new_number_need_one_look_up(
    stack: LocalStack, tmp_path: Path
) -> None:
    assert stack.simulator
    assert stack.ministack
    stack.simulator.configure(latency_seconds=0.3)
    number = "+5531900002020"
    report = publish(stack, tmp_path, *(request(to=number) for _ in range(20)))
    assert [row.status for row in report.rows] == ["consumed"] * 20
    assert stack.simulator.statistics()["lookups"] == {number: 1}
    assert len({message["id"] for message in inbox(stack)}) == len(inbox(stack)) == 20
    assert stack.ministack.log.read_text().count("worker spawned") > 1


def test_dead_letters_stay_on_their_queue_as_they_came(stack: LocalStack, tmp_path: Path) -> None:
    marked = f'{{"id": "{uuid.uuid4()}", '
    file = tmp_path / "broken.json"
    file.write_text(marked)
    report = follow(stack, file, file)
    assert [row.reason for row in report.rows] == ["malformed"] * 2
    for row in report.rows:
        assert row.cause.startswith("the body is not JSON")
    seen: dict[str, str] = {}
    for _ in range(20):
        answer = stack.aws.sqs.receive_message(
            QueueUrl=stack.dead_letters_queue, MaxNumberOfMessages=10, VisibilityTimeout=5
        )
        seen |= {message["MessageId"]: message["Body"] for message in answer.get("Messages", [])}
    assert list(seen.values()).count(marked) == 2


def test_a_second_deploy_replaces_nothing(port_base: int) -> None:
    with LocalStack(port_base=port_base) as stack:
        resources = stack.resources
        bots = stack.aws.secrets.get_secret_value(SecretId=resources["BotsSecret"])

        stack.deploy()
        assert stack.resources == resources

        stack.deploy(Release="another")
        assert stack.resources == resources
        # The real keys outlive every deploy.
        again = stack.aws.secrets.get_secret_value(SecretId=resources["BotsSecret"])
        assert again["SecretString"] == bots["SecretString"]


def test_a_dead_letter_rings_its_alarm_and_no_other(stack: LocalStack, tmp_path: Path) -> None:
    wrong = {"name": "nobody_approved_it", "language": "pt_BR"}
    publish(stack, tmp_path, request(template=wrong))

    ringing = wait_until(stack.ringing, "an alarm")

    assert ringing.keys() == {"DeadLettersAlarm"}
    assert "functions/README.md" in ringing["DeadLettersAlarm"]


def test_a_bot_that_is_shut_rings_its_alarm(stack: LocalStack) -> None:
    table, key = stack.identities_table, {"key": {"S": "bot:clinic"}}
    stack.aws.dynamodb.update_item(
        TableName=table,
        Key=key,
        UpdateExpression="SET broken = :why, probe_until = :far",
        ExpressionAttributeValues={":why": {"S": "tried"}, ":far": {"N": "9999999999999"}},
    )
    stack.aws.sqs.send_message(
        QueueUrl=stack.requests_queue, MessageBody=json.dumps(request(bot="clinic"))
    )

    assert wait_until(lambda: "BreakerOpenAlarm" in stack.ringing(), "the alarm")
    stack.aws.dynamodb.update_item(
        TableName=table, Key=key, UpdateExpression="REMOVE broken, probe_until"
    )
    # It would come by in ten minutes only.
    stack.aws.sqs.purge_queue(QueueUrl=stack.requests_queue)
    wait_until(lambda: queue_depth(stack) == 0, "the queue to be empty")


def test_a_producer_asks_for_a_notification_and_takes_one_back(
    stack: LocalStack, tmp_path: Path
) -> None:
    read, waiting = request(metadata={"order": "981"}), request()
    assert ask(stack, "GET", read["id"], signed=False)[0] == 403
    assert ask(stack, "DELETE", read["id"], signed=False)[0] == 403
    assert ask(stack, "GET", read["id"]) == (404, f"bot default has no notification {read['id']}\n")
    publish(stack, tmp_path, read)

    status, answer = ask(stack, "GET", f"{read['id']}?bot=default")
    assert (status, json.loads(answer)["status"]) == (200, "consumed")
    assert json.loads(answer)["metadata"] == {"order": "981"}
    assert "+5531900002000" not in answer
    assert ask(stack, "DELETE", read["id"])[0] == 409

    assert ask(stack, "DELETE", waiting["id"])[0] == 200
    stack.aws.sqs.send_message(QueueUrl=stack.requests_queue, MessageBody=json.dumps(waiting))
    wait_until(lambda: queue_depth(stack) == 0, "the request to be taken off the queue")
    assert inbox(stack, id=ledger_key("default", waiting["id"])) == []
    assert json.loads(ask(stack, "GET", waiting["id"])[1])["status"] == "cancelled"


def test_what_has_waited_long_enough_is_sent_again_by_the_schedule(stack: LocalStack) -> None:
    limited = request(to="+5531900000057")  # the first message fails for a rate limit
    key = ledger_key("default", limited["id"])

    def stands() -> str:
        status, answer = ask(stack, "GET", limited["id"])
        return str(json.loads(answer)["status"]) if status == 200 else ""

    stack.aws.sqs.send_message(QueueUrl=stack.requests_queue, MessageBody=json.dumps(limited))
    wait_until(lambda: stands() == "waiting", "the receipt that WhatsApp limits it")
    assert json.loads(ask(stack, "GET", limited["id"])[1])["wakes_at"]
    # It would take five minutes at least.
    stack.aws.dynamodb.update_item(
        TableName=stack.ledger_table,
        Key={"key": {"S": key}},
        UpdateExpression="SET wake_at = :long_ago",
        ConditionExpression="attribute_exists(wake_at)",
        ExpressionAttributeValues={":long_ago": {"N": "1"}},
    )

    wait_until(lambda: stands() == "consumed", "the next minute, and what follows")
    assert [len(inbox(stack, id=sent_as)) for sent_as in (key, f"{key}:2")] == [1, 1]


def test_an_operator_looks_at_a_notification_and_forgets_a_person(
    stack: LocalStack, tmp_path: Path
) -> None:
    number = "+5531900002077"
    failed = request(to=number, template={"name": "nobody_approved_it", "language": "pt_BR"})
    cancelled = str(uuid.uuid4())
    [row] = publish(stack, tmp_path, failed).rows
    assert row.reason == "undelivered"

    shown = operate(stack, "notification", failed["id"])
    assert "undelivered" in shown
    assert "nobody_approved_it" in shown
    assert "cancelled" in operate(stack, "cancel", cancelled)

    assert "Nothing was erased" in operate(stack, "forget", types=number)
    shown = operate(stack, "forget", "--yes", types=number)
    assert re.search(r"notifications +1 +1\s+identities +1 +1\s+dead letters +1 +1\s", shown)
    for table in (stack.ledger_table, stack.identities_table):
        assert "5531900002077" not in str(stack.aws.dynamodb.scan(TableName=table)["Items"])
    assert re.search(r"status +cancelled\s", operate(stack, "notification", failed["id"]))
    [first] = inbox(stack, phone=number)
    stack.aws.sqs.send_message(QueueUrl=stack.requests_queue, MessageBody=json.dumps(failed))
    wait_until(lambda: queue_depth(stack) == 0, "the request to be taken off the queue")
    assert inbox(stack, phone=number) == [first]


def operate(stack: LocalStack, *arguments: str, types: str = "") -> str:
    """Run an operator's command; return what it shows."""
    assert stack.ministack
    run = subprocess.run(  # noqa: S603 - our own command
        [
            sys.executable,
            "-m",
            "functions.cli",
            *arguments,
            "--port-base",
            str(stack.ministack.port),
        ],
        cwd=ROOT,
        input=f"{types}\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "5531900002077" not in run.stdout + run.stderr
    return run.stdout


def ask(stack: LocalStack, method: str, path: str, *, signed: bool = True) -> tuple[int, str]:
    """Call the HTTP API as a producer does."""
    assert stack.ministack
    port = stack.ministack.port
    host = f"{stack.resources['HttpApi']}.execute-api.localhost:{port}"
    asked = AWSRequest(method, f"http://{host}/notifications/{path}")
    if signed:
        SigV4Auth(Credentials("local", "local"), "execute-api", REGION).add_auth(asked)
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_SECONDS)
    connection.request(method, f"/notifications/{path}", headers={"Host": host, **asked.headers})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


@contextlib.contextmanager
def listening(stack: LocalStack) -> Iterator[str]:
    """Bring the status events to a queue, with a rule as events/README.md has producers make it."""
    events = stack.aws.client("events")
    queue = stack.aws.sqs.create_queue(QueueName="upstream")["QueueUrl"]
    attributes = stack.aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    pattern = {"source": ["blip-notifier"], "detail-type": ["Notification Status Changed"]}
    events.put_rule(Name="upstream", EventPattern=json.dumps(pattern))
    events.put_targets(
        Rule="upstream", Targets=[{"Id": "queue", "Arn": attributes["Attributes"]["QueueArn"]}]
    )
    yield queue
    events.remove_targets(Rule="upstream", Ids=["queue"])
    events.delete_rule(Name="upstream")
    stack.aws.sqs.delete_queue(QueueUrl=queue)


def test_upstream_hears_of_every_end_on_a_queue_of_its_own(
    stack: LocalStack, tmp_path: Path
) -> None:
    wanted = [
        request(metadata={"order": "981"}),
        request(template={"name": "no_such_template", "language": "pt_BR"}),
        request(valid_until="2020-01-01T00:00:00Z"),
    ]
    told: dict[str, dict[tuple[str, str | None], dict[str, Any]]] = {}
    with listening(stack) as queue:

        def everything_was_told() -> bool:
            answer = stack.aws.sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)
            for message in answer.get("Messages", []):
                event = json.loads(message["Body"])
                detail = event["detail"]
                told.setdefault(detail["id"], {})[detail["status"], detail["reason"]] = event
            heard = [set(told.get(one["id"], {})) for one in wanted]
            # `consumed` may overtake it, and then says it all.
            heard[0].discard(("received", None))
            return heard == [
                {("sent", None), ("consumed", None)},
                {("sent", None), ("failed", "undelivered")},
                {("expired", "expired")},
            ]

        publish(stack, tmp_path, *wanted)
        wait_until(everything_was_told, "every change to be told")

    schema = json.loads((ROOT / "events/schema/status-event.schema.json").read_text())
    for event in (event for events in told.values() for event in events.values()):
        Draft202012Validator(schema, format_checker=FormatChecker()).validate(event)
        for private in (*(one["to"][3:] for one in wanted), "Maria"):
            assert private not in json.dumps(event)
    consumed = told[wanted[0]["id"]]["consumed", None]
    assert consumed["detail"]["metadata"] == {"order": "981"}


def test_expired_items_are_swept_as_the_template_says(stack: LocalStack) -> None:
    for table in (stack.ledger_table, stack.identities_table):
        answer = stack.aws.dynamodb.describe_time_to_live(TableName=table)
        assert answer["TimeToLiveDescription"]["TimeToLiveStatus"] == "ENABLED"
        assert answer["TimeToLiveDescription"]["AttributeName"] == "expires_at"


def queue_depth(stack: LocalStack) -> int:
    answer = stack.aws.sqs.get_queue_attributes(
        QueueUrl=stack.requests_queue, AttributeNames=["All"]
    )["Attributes"]
    return sum(int(count) for name, count in answer.items() if name.startswith("Approx"))
