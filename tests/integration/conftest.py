"""An AWS in process (moto) with the stack's tables and queues, and a BLiP over loopback."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto import mock_aws
from moto.dynamodb.responses import DynamoHandler
from moto.sqs.models import SQSBackend

from notifier.entrypoints.environment import BatchCrashed
from notifier.entrypoints.send_notification import SendNotification, send_notification
from notifier.settings import SendNotificationSettings
from notifier.use_cases import slots
from tests.integration.receipts_stack import clock, receipts
from tests.local.blip import Simulator
from tests.support.lambda_runtime import a_context

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sqs import SQSClient

__all__ = ["clock", "receipts"]  # these fixtures have a file of their own


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test ever finds real credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def exact_slots() -> None:
    """Keep the grace of a slot as it is, for tests of the pace."""


@pytest.fixture(autouse=True)
def slots_may_be_late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengthen the grace of a slot: on a busy machine threads wake up late."""
    if "exact_slots" not in request.fixturenames:
        monkeypatch.setattr(slots, "SLOT_GRACE_SECONDS", 2.0)


@dataclass
class Aws:
    """The stack's resources, as the template makes them.

    Attributes:
        calls: the name and the parameters of every call to AWS, by whatever client.
    """

    dynamodb: "DynamoDBClient"
    sqs: "SQSClient"
    secrets_manager: "SecretsManagerClient"
    requests_url: str
    dead_letters_url: str
    secret: str
    calls: list[tuple[str, dict[str, Any]]]
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> SendNotificationSettings:
        values = {
            "ledger_table": "ledger",
            "identities_table": "identities",
            "requests_queue_url": self.requests_url,
            "dead_letters_queue_url": self.dead_letters_url,
            "bots_secret_arn": self.secret,
            "cooldown_seconds": 120,
            "breaker_wait_seconds": 600,
            "backoff_base_seconds": 5,
            "backoff_max_seconds": 900,
            "settle_window_seconds": 900,
            "max_attempts": 20,
            "max_wait_seconds": 604_800,
            "maximum_concurrency": 5,
            "identity_ttl_seconds": 518_400,
            "identity_negative_ttl_seconds": 86_400,
            "allowed_recipients": "+",
            "ledger_restored_at": "1970-01-01T00:00:00Z",
        }
        return SendNotificationSettings(**(values | self.overrides))  # type: ignore[arg-type] # by name, above

    def dead_letters(self) -> list[dict[str, Any]]:
        """Receive and return every dead letter: its body, and its attributes as plain values."""
        letters: list[dict[str, Any]] = []
        while messages := self.sqs.receive_message(
            QueueUrl=self.dead_letters_url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
        ).get("Messages"):
            for message in messages:
                attributes = {
                    name: value["StringValue"]
                    for name, value in message.get("MessageAttributes", {}).items()
                }
                letter: dict[str, Any] = {"body": message["Body"]} | attributes
                letters.append(letter | {"failure": json.loads(attributes["failure"])})
                self.sqs.delete_message(
                    QueueUrl=self.dead_letters_url, ReceiptHandle=message["ReceiptHandle"]
                )
        return letters

    def ledger(self) -> list[dict[str, Any]]:
        """Return the whole ledger."""
        items = self.dynamodb.scan(TableName="ledger")["Items"]
        return [{name: next(iter(v.values())) for name, v in item.items()} for item in items]

    def put_bots(self, bots: dict[str, Any] | str) -> None:
        text = bots if isinstance(bots, str) else json.dumps(bots)
        self.secrets_manager.put_secret_value(SecretId=self.secret, SecretString=text)


@pytest.fixture
def one_call_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock moto for threads: neither its conditional writes nor its queues are atomic.

    A long poll ends at once, or it would keep all other calls waiting.
    """
    lock = RLock()

    def locked(owner: type, name: str) -> None:
        answer = getattr(owner, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if name == "receive_message":
                queue, count, _, *rest = args
                args = (queue, count, 0, *rest)
            with lock:
                return answer(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    locked(DynamoHandler, "call_action")
    for name in (
        "receive_message",
        "send_message",
        "delete_message",
        "change_message_visibility",
    ):
        locked(SQSBackend, name)


@pytest.fixture(scope="session")
def session() -> boto3.Session:
    """Return one session for all tests, since reading boto3's models takes time."""
    return boto3.Session("testing", "testing", region_name="us-east-1")


@pytest.fixture
def aws(
    session: boto3.Session,
    one_call_at_a_time: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Aws]:
    calls: list[tuple[str, dict[str, Any]]] = []

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        calls.append((model.name, params))

    session.events.register("provide-client-params.*.*", note)
    with mock_aws():
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
        dynamodb = boto3.client("dynamodb")
        for table in ("ledger", "identities"):
            stream: Any = {}
            if table == "ledger":
                view = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
                stream["StreamSpecification"] = view
            dynamodb.create_table(
                TableName=table,
                BillingMode="PAY_PER_REQUEST",
                KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
                **stream,
            )
        sqs = boto3.client("sqs")
        secrets_manager = boto3.client("secretsmanager")
        yield Aws(
            dynamodb,
            sqs,
            secrets_manager,
            sqs.create_queue(QueueName="requests", Attributes={"VisibilityTimeout": "180"})[
                "QueueUrl"
            ],
            sqs.create_queue(QueueName="dead-letters")["QueueUrl"],
            secrets_manager.create_secret(Name="bots", SecretString="{}")["ARN"],
            calls,
        )
    session.events.unregister("provide-client-params.*.*", note)


@pytest.fixture
def blip() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


type Record = dict[str, Any]


@dataclass
class Stack:
    """The function with its AWS and its BLiP.

    Attributes:
        functions: its sandboxes; the first is the one that `deliver` uses.
    """

    aws: Aws
    blip: Simulator
    build: Callable[[SendNotificationSettings], SendNotification] = send_notification
    functions: list[SendNotification] = field(default_factory=list)

    def sandbox(self) -> SendNotification:
        """Return one more sandbox of the function."""
        self.functions.append(self.build(self.aws.settings))
        return self.functions[-1]

    def publish(self, *bodies: str | dict[str, Any], generation: int | None = None) -> None:
        """Put these on the requests queue."""
        attributes: dict[str, Any] = {}
        if generation is not None:
            attributes["generation"] = {"DataType": "Number", "StringValue": str(generation)}
        for body in bodies:
            text = body if isinstance(body, str) else json.dumps(body)
            self.aws.sqs.send_message(
                QueueUrl=self.aws.requests_url, MessageBody=text, MessageAttributes=attributes
            )

    def receive(self) -> list[Record]:
        """Receive all visible messages. Return them as records of Lambda's event."""
        records = []
        while messages := self.aws.sqs.receive_message(
            QueueUrl=self.aws.requests_url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            AttributeNames=["All"],
        ).get("Messages"):
            records += [
                {
                    "messageId": message["MessageId"],
                    "receiptHandle": message["ReceiptHandle"],
                    "body": message["Body"],
                    "attributes": message["Attributes"],
                    "messageAttributes": {
                        name: {"stringValue": value["StringValue"], "dataType": value["DataType"]}
                        for name, value in message.get("MessageAttributes", {}).items()
                    },
                }
                for message in messages
            ]
        return records

    def handle(
        self,
        records: list[Record],
        *,
        seconds: float = 30,
        function: SendNotification | None = None,
    ) -> list[str]:
        """Hand these to the function as one batch. Return the bodies that have to return."""
        if function is None:
            function = self.functions[0] if self.functions else self.sandbox()
        try:
            answer = function.handle({"Records": records}, a_context(seconds))
        except BatchCrashed:
            return [record["body"] for record in records]
        failed = {entry["itemIdentifier"] for entry in answer["batchItemFailures"]}
        for record in records:
            if record["messageId"] not in failed:
                self.aws.sqs.delete_message(
                    QueueUrl=self.aws.requests_url, ReceiptHandle=record["receiptHandle"]
                )
        return [record["body"] for record in records if record["messageId"] in failed]

    def deliver(
        self, *bodies: str | dict[str, Any], generation: int | None = None, seconds: float = 30
    ) -> list[str]:
        """Publish these and hand them to the function as one batch. Return what has to return."""
        self.publish(*bodies, generation=generation)
        return self.handle(self.receive(), seconds=seconds)


@pytest.fixture
def stack(aws: Aws, blip: Simulator) -> Iterator[Stack]:
    aws.put_bots({"default": {"base_url": blip.url, "key": blip.key, "namespace": "ns"}})
    stack = Stack(aws, blip)
    yield stack
    for function in stack.functions:
        function.close()
