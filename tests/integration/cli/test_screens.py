"""Every command on a terminal of 80 and of 200 columns, compared with the files in `screens/`.

`WRITE_SCREENS=1` writes them anew: look at the difference before it is committed.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from functions.cli import __main__ as command_line
from functions.cli import bots, deployment, output, status
from functions.cli import stack as stacks
from notifier.aws.outbox import REFUSED
from notifier.domain.notification import ledger_key
from tests.integration.cli.deployed import Deployed, terminal
from tests.integration.cli.test_ledger import in_the_ledger
from tests.integration.conftest import Aws
from tests.integration.receipts_stack import SECRET
from tests.local.blip import Simulator

SCREENS = Path(__file__).parents[1] / "screens"
WIDTHS = (80, 200)
# A year in which this is not run: every other time is masked.
NOW = datetime(2025, 11, 26, 9, 0, tzinfo=UTC).timestamp()
LONG_ID = "order-981-shipped:a-very-long-name-that-a-producer-may-choose~" + "0123456789" * 6
PHONE = "+5531900001001"
REQUEST = {
    "id": "order-981-shipped",
    "to": PHONE,
    "template": {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981"]},
}

type Json = dict[str, Any]
type Screens = Callable[..., None]


@pytest.fixture(autouse=True)
def _same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: NOW)
    for module in (output, bots, status):
        monkeypatch.setattr(module, "time", clock)


@pytest.fixture
def deployed(aws: Aws, blip: Simulator) -> Deployed:
    """A local stack with three bots, of which one is paused and one has an open breaker."""
    secrets = boto3.client("secretsmanager")
    webhook = secrets.create_secret(Name="webhook", SecretString=SECRET)["ARN"]
    bot = {"base_url": blip.url, "key": blip.key, "namespace": "ns"}
    aws.put_bots({"default": bot, "clinic": bot, "shop": bot, "new": {"key": "Key REPLACE_ME"}})
    items: list[Json] = [
        {"key": {"S": "bot:clinic"}, "paused": {"N": str(ms(-7200))}},
        {
            "key": {"S": "bot:shop"},
            "broken": {"S": "5 notifications in a row had no definite answer"},
            "throttled_until": {"N": str(ms(90))},
        },
    ]
    for item in items:
        aws.dynamodb.put_item(TableName="identities", Item=item)
    queues = ("ReceiptsQueue", "ReceiptsDeadLettersQueue", "UnpublishedQueue")
    return Deployed(
        aws,
        webhook,
        endpoint="http://127.0.0.1:4566",
        queues={name: aws.sqs.create_queue(QueueName=name)["QueueUrl"] for name in queues},
    )


@pytest.fixture
def screens(
    deployed: Deployed,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Screens:
    """Compare what a command shows at each width with its files."""
    monkeypatch.setattr(stacks, "connect", lambda _: deployed)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("CALLED_BY", "make")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.chdir(tmp_path)

    def screens(
        name: str,
        *arguments: str,
        code: int = 0,
        typed: str = "",
        again: Callable[[], None] | None = None,
    ) -> None:
        for width in WIDTHS:
            if again:
                again()
            with terminal(width, typed) as shown:
                came = command_line.main(list(arguments))
            text = masked(shown.text)
            file = SCREENS / f"{name}.{width}.txt"
            if "WRITE_SCREENS" in os.environ:
                file.parent.mkdir(exist_ok=True)
                file.write_text(text)
            assert came == code, text
            assert text == file.read_text()

    return screens


def masked(text: str) -> str:
    """Return what was shown without its styles, and what differs from run to run as zeros or x."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    # What was shown in the same place before, and what fills a line.
    text = re.sub(r"[^\n]*\r| +$", "", text, flags=re.MULTILINE)
    # A bar, which is erased in the end.
    text = re.sub(r"^.*━.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"127\.0\.0\.1:(?!456\d\b)\d+", "127.0.0.1:00000", text)
    text = re.sub(r"\b[0-9a-f]{64}\b", "x" * 64, text)
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{3})?(?:Z|\+00:00)"

    def zeros(found: re.Match[str]) -> str:
        return found[0] if found[0].startswith("2025") else re.sub(r"\d", "0", found[0])

    return re.sub(moment, zeros, text)


def ms(seconds: float) -> int:
    return round((NOW + seconds) * 1000)


# --- what lies in the stack -----------------------------------------------------------------------


def a_dead_letter(
    aws: Aws, reason: str, notification_id: str | None, failed: float, **failure: Any
) -> None:
    """Put a dead letter that failed so many seconds ago."""
    failed_at = datetime.fromtimestamp(NOW - failed, UTC).isoformat(timespec="milliseconds")
    texts = {"reason": reason, "failed_at": failed_at, "failure": json.dumps(failure)}
    body = "{"
    if notification_id:
        texts |= {"notification_id": notification_id, "bot": "default"}
        body = json.dumps(REQUEST | {"id": notification_id})
    attributes: Any = {
        name: {"DataType": "String", "StringValue": text} for name, text in texts.items()
    }
    attributes["generation"] = {"DataType": "Number", "StringValue": "1"}
    aws.sqs.send_message(
        QueueUrl=aws.dead_letters_url, MessageBody=body, MessageAttributes=attributes
    )


@pytest.fixture
def dead_letters(aws: Aws) -> None:
    a_dead_letter(
        aws,
        "undelivered",
        LONG_ID,
        4 * 86_400,
        code=132_001,
        detail="BLiP reports reason 132001: Template name does not exist in the translation",
        template="order_shipped",
        redrives=1,
    )
    a_dead_letter(aws, "undelivered", "order-2", 3600, code=131_026, detail="BLiP reports 131026")
    a_dead_letter(aws, "malformed", None, 300, detail="the body is not JSON: EOF while parsing")


def a_notification(aws: Aws, notification_id: str, *timeline: Any, **more: Any) -> str:
    """Put a notification into the ledger; the times of its timeline are in seconds from NOW."""
    key = ledger_key("default", notification_id)
    entries = [[status, 1, ms(at), reason] for status, at, reason in timeline]
    in_the_ledger(
        aws,
        key,
        ("sent", 0, None),
        **{
            "id": notification_id,
            "status": timeline[-1][0],
            "timeline": entries,
            "generation": 1,
            "attempts": 1,
            "recipient": "…1001",
            "metadata": {"order": "981"},
            "content_hash": "1:0",
            "correlation_id": None,
            "created_at": entries[0][2] - 400,
            "updated_at": entries[-1][2],
            "expires_at": 4_000_000_000,
        }
        | more,
    )
    return key


# --- status ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("dead_letters")
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4566", None])
def test_status(screens: Screens, deployed: Deployed, endpoint: str | None) -> None:
    deployed.endpoint = endpoint
    cloudwatch = boto3.client("cloudwatch")
    alarm = deployed.physical_id("DeadLettersAlarm")
    for name in (alarm, "of-another-stack"):
        cloudwatch.put_metric_alarm(
            AlarmName=name,
            AlarmDescription="There are dead letters. Read why, fix it, put them back. See"
            " functions/README.md, DeadLettersAlarm.",
            Namespace="AWS/SQS",
            MetricName="ApproximateNumberOfMessagesVisible",
            Period=60,
            EvaluationPeriods=1,
            Threshold=0,
            ComparisonOperator="GreaterThanThreshold",
            Statistic="Maximum",
        )
        cloudwatch.set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="letters")
    measured = [
        ("AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", "dead-letters", 345_600.0, -60),
        # Nothing lies there any more.
        ("AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", "requests", 12.0, -60),
        ("BlipNotifier", "receipts_late", "service", "blip-notifier", 180.0, -120),
        ("BlipNotifier", "sent", "service", "blip-notifier", 1200.0, -3000),
        ("BlipNotifier", "sent", "service", "blip-notifier", 34.0, -60),
        *[("BlipNotifier", "sent_to_received", "service", "blip-notifier", 2300.0, -60)] * 3,
        # An hour ago, and another stack's.
        ("BlipNotifier", "sent", "service", "blip-notifier", 5000.0, -3900),
        ("BlipNotifier", "sent", "service", "blip-notifier-dev", 7000.0, -60),
    ]
    for namespace, metric, dimension, about, value, at in measured:
        cloudwatch.put_metric_data(
            Namespace=namespace,
            MetricData=[
                {
                    "MetricName": metric,
                    "Dimensions": [{"Name": dimension, "Value": about}],
                    "Value": value,
                    "Timestamp": datetime.fromtimestamp(NOW + at, UTC),
                }
            ],
        )

    screens("status" if endpoint else "status-deployed", "status")


def test_status_asks_for_everything_at_once(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = Barrier(status.THREADS)
    asked: list[str] = []
    for name in ("_metrics", "_dead_letters", "_standings", "_alarms", "_depth"):
        ask = getattr(status, name)

        def meet(*arguments: Any, name: str = name, ask: Any = ask) -> Any:
            asked.append(name)
            everything.wait(60)
            return ask(*arguments)

        monkeypatch.setattr(status, name, meet)
    stack: Any = deployed

    assert status._collect(stack)["queues"][0]["name"] == "requests"
    assert len(asked) == status.THREADS


# --- publish --------------------------------------------------------------------------------------


def files(**contents: str) -> None:
    for name, content in contents.items():
        Path(name.replace("_", ".")).write_text(content)


def test_publish(screens: Screens) -> None:
    files(one_json=json.dumps(REQUEST | {"id": "order-7001-shipped"}))
    paused = REQUEST | {"id": "order-7002", "bot": "clinic"}
    files(many_jsonl="".join(f"{json.dumps(REQUEST | {'id': f'order-{n}'})}\n" for n in range(23)))
    files(paused_json=json.dumps(paused))

    screens("publish", "publish", "one.json")
    screens("publish-paused-bot", "publish", "paused.json")
    screens("publish-many", "publish", "many.jsonl")


def test_publish_refuses_what_breaks_the_contract(screens: Screens, aws: Aws) -> None:
    typo = {"id": "order-1", "too": PHONE, "template": REQUEST["template"]}
    files(typo_json=json.dumps(typo, indent=1), cut_json='{"id": "order-1", "to"', empty_json="\n")
    lines = [json.dumps(REQUEST), json.dumps(typo), "not JSON"]
    files(mixed_jsonl="".join(f"{line}\n" for line in lines))

    screens("publish-typo", "publish", "typo.json", code=1)
    screens("publish-cut-off", "publish", "cut.json", code=1)
    screens("publish-empty", "publish", "empty.json", code=1)
    screens("publish-missing", "publish", "nowhere.json", code=1)
    screens("publish-mixed", "publish", "mixed.jsonl", code=1)
    assert [name for name, _ in aws.calls if name.startswith("SendMessage")] == []
    screens("publish-as-is", "publish", "mixed.jsonl", "--as-is")


# --- notification and cancel ----------------------------------------------------------------------


def test_notification(screens: Screens, aws: Aws) -> None:
    a_notification(aws, "order-1", ("sent", -60, None), ("received", -58, None))
    timeline = [("sent", -60, None), ("accepted", -59, None), ("failed", -50, "undelivered")]
    a_notification(aws, LONG_ID, *timeline, reason="undelivered", code=132_001)

    screens("notification", "notification", "order-1")
    screens("notification-failed", "notification", LONG_ID)
    screens("notification-unknown", "notification", "order-404", code=1)
    screens("notification-unknown-paused", "notification", "order-404", "--bot", "clinic", code=1)
    screens("notification-broken-id", "notification", "order/404", code=2)


def test_notification_under_way_of_a_bot_that_is_held(screens: Screens, aws: Aws) -> None:
    state = {"key": {"S": "bot:default"}, "paused": {"N": str(ms(-600))}}
    aws.dynamodb.put_item(TableName="identities", Item=state)
    a_notification(aws, "order-1", ("retrying", -300, None))

    screens("notification-waiting", "notification", "order-1")


def test_notification_that_waits_to_be_sent_again(screens: Screens, aws: Aws) -> None:
    timeline = [("sent", -60, None), ("dispatched", -59, None), ("waiting", -58, None)]
    until = ms(86_400)
    waits = {"waits": ["recipient capped"], "wake_shard": "a", "wake_at": until}
    a_notification(aws, "order-1", *timeline, code=131_049, **waits)

    screens("notification-waits", "notification", "order-1")
    screens("notification-waits-evidence", "notification", "order-1", "--evidence")


@pytest.mark.usefixtures("dead_letters")
def test_notification_that_is_a_dead_letter_only(screens: Screens) -> None:
    screens("notification-dead-letter", "notification", "order-2", code=1)


def test_notification_with_evidence(screens: Screens, aws: Aws) -> None:
    aws.dynamodb.put_item(
        TableName="identities",
        Item={"key": {"S": "bot:default"}, "next_messages_at": {"N": str(ms(1) * 1000)}},
    )
    a_notification(
        aws,
        "order-1",
        ("sent", -600, None),
        ("failed", -590, "undelivered"),
        ("unknown", -60, None),
        generation=2,
        attempts=3,
        redrives=1,
        waits=["rate limited"],
        denials=1,
        control="a95e10f3-1655-4f62-80bf-53417ca820db",
        control_at=ms(-30),
        in_flight_until=ms(-50),
        late=[["received", 1, ms(-40), None]],
    )
    a_notification(aws, "order-2", ("sent", -60, None), token="t", lease_until=ms(30))  # noqa: S106
    in_the_ledger(
        aws,
        ledger_key("default", "order-3") + REFUSED,
        ("rejected", 0, None),
        id="order-3",
        status="rejected",
        refusals=[["record", "invalid", ms(-5), None, {}]],
        expires_at=4_000_000_000,
    )

    screens("notification-evidence", "notification", "order-1", "--evidence")
    screens("notification-evidence-sent", "notification", "order-2", "--evidence")
    screens("notification-evidence-refused", "notification", "order-3", "--evidence")


def test_cancel(screens: Screens, aws: Aws) -> None:
    a_notification(aws, "order-2", ("sent", -60, None))

    def waits() -> None:
        a_notification(aws, "order-1", ("retrying", -300, None), template="order_shipped")

    screens("cancel", "cancel", "order-1", again=waits)
    screens("cancel-too-late", "cancel", "order-2", code=1)
    screens("cancel-in-advance", "cancel", "order-404")


# --- dead letters ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("dead_letters")
def test_failures(screens: Screens) -> None:
    screens("failures", "failures")
    screens("failures-each", "failures", "--each")
    screens("failures-wrong-reason", "failures", "--reason", "udelivered", code=2)


def test_redrive(screens: Screens, aws: Aws) -> None:
    def put() -> None:
        aws.dead_letters()
        a_dead_letter(aws, "undelivered", "order-2", 3600, code=131_026, detail="BLiP said so")
        a_dead_letter(aws, "malformed", None, 300, detail="the body is not JSON")

    screens("redrive", "redrive", again=put)
    screens("redrive-each", "redrive", "--each", again=put)
    screens("redrive-execute", "redrive", "--execute", again=put)


# --- bots -----------------------------------------------------------------------------------------


def test_bots(screens: Screens) -> None:
    screens("check-bot", "check-bot", "default")
    screens("check-bot-paused", "check-bot", "clinic", code=1)
    screens("check-bot-unfinished", "check-bot", "new", code=1)
    screens("check-bot-unknown", "check-bot", "clinc", code=1)
    screens("pause", "pause", "default")
    screens("resume", "resume", "default")
    screens("usage", "pause", code=2)


def test_templates(screens: Screens) -> None:
    screens("templates", "templates", "--bot", "default")


def test_rotate_webhook(screens: Screens, deployed: Deployed) -> None:
    def put() -> None:
        deployed.aws.secrets_manager.put_secret_value(
            SecretId=deployed.webhook_secret,
            SecretString=json.dumps({name: {"current": "s"} for name in ("new", "shop")}),
        )

    screens("rotate-webhook", "rotate-webhook", "new", again=put)
    screens("rotate-webhook-leaked", "rotate-webhook", "new", "--leaked", again=put)


# --- the ledger as a whole ------------------------------------------------------------------------


@pytest.mark.usefixtures("dead_letters")
def test_forget(screens: Screens, aws: Aws) -> None:
    def put() -> None:
        body = json.dumps(REQUEST | {"id": "order-1"})
        a_notification(aws, "order-1", ("retrying", -300, None), request=body)
        a_notification(aws, "order-2", ("received", -300, None), request="")

    screens("forget", "forget", typed=f"{PHONE}\n", again=put)
    screens("forget-nothing", "forget", typed="\n", code=1)


def test_republish_and_restore(screens: Screens, aws: Aws) -> None:
    key = a_notification(aws, "order-1", ("sent", -60, None))
    aws.dynamodb.create_table(
        TableName="restored",
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
    )
    lost = {"key": {"S": f"{key}-lost"}}
    waiting = {"status": {"S": "waiting"}, "wake_shard": {"S": "a"}, "wake_at": {"N": "1"}}
    aws.dynamodb.put_item(TableName="restored", Item=lost | waiting)

    def lose() -> None:
        aws.dynamodb.delete_item(TableName="ledger", Key=lost)

    screens("republish", "republish", "2025-11-26T00:00:00Z")
    screens("restore-ledger", "restore-ledger", "restored", again=lose)


# --- deploy ---------------------------------------------------------------------------------------


@pytest.fixture
def stage(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stack of the stage `dev` with a table; SAM CLI shows its name, and deploys the release."""
    del aws
    cloudformation = boto3.client("cloudformation")
    template = {
        "Parameters": {"Release": {"Type": "String", "Default": "0"}},
        "Resources": {
            "LedgerTable": {
                "Type": "AWS::DynamoDB::Table",
                "Properties": {
                    "TableName": "blip-notifier-dev-LedgerTable-1A2B3C",
                    "BillingMode": "PAY_PER_REQUEST",
                    "KeySchema": [{"AttributeName": "key", "KeyType": "HASH"}],
                    "AttributeDefinitions": [{"AttributeName": "key", "AttributeType": "S"}],
                },
            }
        },
    }
    stack = "blip-notifier-dev"
    cloudformation.create_stack(StackName=stack, TemplateBody=json.dumps(template))

    def sam(command: str, *arguments: object) -> None:
        output.say_exactly(f"(what `sam {command}` shows)")
        for argument in map(str, arguments):
            is_release = argument.startswith("Release=")
            if not is_release or "--no-confirm-changeset" not in arguments:
                continue
            # The second time it is there already.
            with contextlib.suppress(ClientError):
                cloudformation.update_stack(
                    StackName=stack,
                    UsePreviousTemplate=True,
                    Parameters=[
                        {"ParameterKey": "Release", "ParameterValue": argument.partition("=")[2]}
                    ],
                )

    monkeypatch.setattr(deployment, "_sam", sam)
    monkeypatch.setattr(deployment, "_remote", lambda: "https://github.com/acme/notifier")
    monkeypatch.setattr(deployment, "time", SimpleNamespace(time=lambda: NOW))
    return stack


def test_deploy(screens: Screens, stage: str) -> None:
    del stage
    dev = ("deploy", "--stage", "dev", "--region", "us-east-1")
    allowed = ("--allowed", "+5531999998888")

    screens("deploy-which-stage", "deploy", code=1)
    screens("deploy-no-recipients", *dev, code=1)
    screens("deploy-wrong-parameter", *dev, *allowed, "MaxAtempts=7", code=1)
    screens("deploy-declined", *dev, *allowed, code=1)
    screens("deploy", *dev, *allowed, "--yes")


def test_undeploy(screens: Screens, stage: str) -> None:
    dev = ("undeploy", "--stage", "dev", "--region", "us-east-1")

    screens("undeploy-declined", *dev, typed="yes\n", code=1)
    screens("undeploy", *dev, typed=f"{stage}\n")
    boto3.client("cloudformation").delete_stack(StackName=stage)
    screens("undeploy-no-stack", *dev, code=1)
