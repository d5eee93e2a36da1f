"""What `sam build` makes, and that it runs, with nothing but the rights that its role gives it.

The function runs as in Lambda: AWS's runtime client under AWS's Runtime Interface Emulator, which
SAM CLI's wheel brings along. Around it is a local AWS that, unlike the one of the other tests,
enforces IAM.
"""

import hashlib
import http.client
import importlib.util
import json
import marshal
import os
import platform
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import pytest

from tests.local.aws import REGION
from tests.local.blip import Simulator, Template
from tests.local.machine import HOST, PATIENCE_SECONDS, free_ports, wait_until
from tests.template.transformed import as_list, load, logical_id

if TYPE_CHECKING:
    from types import CodeType

    from mypy_boto3_sqs.type_defs import MessageTypeDef

ROOT = Path(__file__).parents[2]
ARCHITECTURE = "arm64" if platform.machine() in {"arm64", "aarch64"} else "x86_64"
FUNCTIONS = list(load().resources("AWS::Lambda::Function"))
LAYERS = ["DependenciesLayer", "NotifierLayer"]
# The first flags of PEP 552: named after the source's hash, and never compared with it.
UNCHECKED_HASH = 0b01
MAX_BYTES = 24_000_000

ACCOUNT = "000000000000"
PSEUDO_PARAMETERS = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
}
MANY_AT_ONCE = {"sqs:SendMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"}
WEBHOOK_SECRET = "what BLiP shows at the webhook"  # noqa: S105
RECIPIENT = "+5531999998888"
TEMPLATE = {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981"]}


# ------------------------------------------------------------------------------------ the artefacts


def build(folder: Path) -> Path:
    """Run `sam build` with no credentials and nothing but the first environment on the path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("UV_", "SSL_")) or name.lower().endswith("_proxy") or name == "HOME"
    }
    answer = subprocess.run(  # noqa: S603
        [
            *(ROOT / ".venv-sam/bin/sam", "build", "--template", ROOT / "template.yaml"),
            *("--no-cached", "--build-dir", folder / "build"),
        ],
        cwd=folder,
        env=kept | {"PATH": f"{ROOT / '.venv/bin'}:/usr/bin:/bin", "SAM_CLI_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return folder / "build"


def files(folder: Path) -> dict[str, Path]:
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("artefacts"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_its_entrance_and_nothing_else(artefacts: Path, name: str) -> None:
    assert list(files(artefacts / name)) == ["app.py"]


def test_the_package_is_in_its_layer_and_nothing_else(artefacts: Path) -> None:
    source = ROOT / "layers/notifier/notifier"
    expected = {f"python/notifier/{path.relative_to(source)}" for path in source.rglob("*.py")}
    found = files(artefacts / "NotifierLayer")

    assert "python/notifier/use_cases/send_notification/delivery.py" in expected
    assert {name for name in found if not name.endswith(".pyc")} == expected


def test_the_dependencies_are_the_pinned_ones_for_both_architectures(artefacts: Path) -> None:
    requirements = (ROOT / "layers/dependencies/requirements.txt").read_text(encoding="utf-8")
    pinned = {
        f"{name.replace('-', '_')}-{version}.dist-info"
        for name, version in re.findall(r"^([\w-]+)==([\w.]+)", requirements, re.MULTILINE)
    }
    python = artefacts / "DependenciesLayer/python"
    compiled = [path.name.removeprefix("_pydantic_core.") for path in python.rglob("*.so")]

    assert {path.name for path in python.glob("*.dist-info")} == pinned
    assert sorted(compiled) == [
        "cpython-313-aarch64-linux-gnu.so",
        "cpython-313-x86_64-linux-gnu.so",
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_no_cold_start_compiles(artefacts: Path, layer: str) -> None:
    """Lambda's file system cannot be written: what is not compiled now is compiled every time."""
    sources = list((artefacts / layer).rglob("*.py"))
    assert sources

    for source in sources:
        bytecode = Path(importlib.util.cache_from_source(str(source))).read_bytes()
        code: CodeType = marshal.loads(bytecode[16:])  # noqa: S302
        assert bytecode[:4] == importlib.util.MAGIC_NUMBER
        assert int.from_bytes(bytecode[4:8], "little") == UNCHECKED_HASH
        assert bytecode[8:16] == importlib.util.source_hash(source.read_bytes())
        assert code.co_filename == f"/opt/{source.relative_to(artefacts / layer)}"


def test_the_layers_stay_small(artefacts: Path) -> None:
    sizes = [path.stat().st_size for layer in LAYERS for path in files(artefacts / layer).values()]

    assert sum(sizes) <= MAX_BYTES


def test_every_build_gives_the_same_bytes(artefacts: Path, tmp_path: Path) -> None:
    again = build(tmp_path)

    for part in (*FUNCTIONS, *LAYERS):
        one, other = (
            {
                name: hashlib.sha256(path.read_bytes()).hexdigest()
                for name, path in files(folder / part).items()
            }
            for folder in (artefacts, again)
        )
        assert one == other


# ------------------------------------------------------------------------------ the function itself


@contextmanager
def process(
    command: Sequence[object], folder: Path, environment: Mapping[str, str], log: Path
) -> Iterator[None]:
    """Run a command with its output in a log; in the end kill it and what it has started."""
    with log.open("wb") as output:
        running = subprocess.Popen(  # noqa: S603
            [str(part) for part in command],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        assert running.stdin is not None
        running.stdin.close()


def answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path)
        connection.getresponse()
    except OSError:
        return False
    finally:
        connection.close()
    return True


@dataclass
class GuardedAws:
    """A local AWS that enforces IAM, seen by its owner, with what the stack's role speaks of."""

    url: str
    names: dict[str, str] = field(default_factory=dict)
    arns: dict[str, str] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        owner: Any = boto3.Session("test", "test", region_name=REGION)
        return owner.client(service, endpoint_url=self.url)

    def create_resources(self, bots: Mapping[str, Any]) -> None:
        """Make what the functions use, but for the queues."""
        template = load()
        dynamodb, secrets_manager = self.client("dynamodb"), self.client("secretsmanager")
        for table, resource in template.resources("AWS::DynamoDB::Table").items():
            asked = ("KeySchema", "AttributeDefinitions", "GlobalSecondaryIndexes", "BillingMode")
            properties = {k: v for k, v in resource["Properties"].items() if k in asked}
            if stream := resource["Properties"].get("StreamSpecification"):
                properties["StreamSpecification"] = stream | {"StreamEnabled": True}
            made = dynamodb.create_table(TableName=table, **properties)["TableDescription"]
            self.names[table] = table
            self.arns[table] = made["TableArn"]
            self.arns[f"{table}.StreamArn"] = made.get("LatestStreamArn", "no stream")
        for secret in template.resources("AWS::SecretsManager::Secret"):
            text = json.dumps(bots) if secret == "BotsSecret" else WEBHOOK_SECRET  # noqa: S105
            made = secrets_manager.create_secret(Name=secret, SecretString=text)
            self.names[secret] = self.arns[secret] = made["ARN"]
        self.names["AWS::StackName"] = "blip-notifier"
        for group in template.resources("AWS::Logs::LogGroup"):
            self.arns[group] = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{group}:*"

    def with_queues_of_its_own(self) -> "GuardedAws":
        """Make queues that no other test has used, under the names of the template's."""
        sqs = self.client("sqs")
        names, arns = dict(self.names), dict(self.arns)
        for queue in load().resources("AWS::SQS::Queue"):
            names[queue] = sqs.create_queue(QueueName=f"{queue}-{uuid4()}")["QueueUrl"]
            arns[queue] = sqs.get_queue_attributes(
                QueueUrl=names[queue], AttributeNames=["QueueArn"]
            )["Attributes"]["QueueArn"]
        return GuardedAws(self.url, names, arns)

    def environment(self, function: str) -> dict[str, str]:
        """Return the variables of a function as the stack would set them."""
        template = load()
        variables = template.properties(function)["Environment"]["Variables"]
        return {
            name: self.names.get(value["Ref"]) or template.parameters[value["Ref"]]
            if isinstance(value, dict)
            else value
            for name, value in variables.items()
        }

    def session(self, function: str, *, without: str | None = None) -> dict[str, str]:
        """Return credentials for a function's role, as Lambda would, perhaps without one right."""
        template = load()
        role = template.properties(logical_id(template.properties(function)["Role"]))
        iam = self.client("iam")
        name = f"role-{uuid4()}"
        arn = iam.create_role(
            RoleName=name, AssumeRolePolicyDocument=json.dumps(role["AssumeRolePolicyDocument"])
        )["Role"]["Arn"]
        for policy in role["Policies"]:
            document = json.loads(json.dumps(policy["PolicyDocument"]))
            for statement in document["Statement"]:
                actions = {action for action in as_list(statement["Action"]) if action != without}
                # On AWS each of these is the right to do it to several at once, too.
                several = {f"{action}Batch" for action in actions & MANY_AT_ONCE}
                statement["Action"] = sorted(actions | several)
                statement["Resource"] = [
                    self._arn(resource) for resource in as_list(statement["Resource"])
                ]
            document["Statement"] = [s for s in document["Statement"] if s["Action"]]
            iam.put_role_policy(
                RoleName=name, PolicyName=policy["PolicyName"], PolicyDocument=json.dumps(document)
            )
        session = self.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
            "AWS_SESSION_TOKEN": session["SessionToken"],
        }

    def _arn(self, resource: Any) -> str:
        match resource:
            case {"Fn::Sub": str(arn)}:
                attributes = {f"{name}.Arn": arn for name, arn in self.arns.items()}
                values = load().parameters | PSEUDO_PARAMETERS | attributes
                return re.sub(r"\$\{([\w:.]+)\}", lambda match: values[match[1]], arn)
            case {"Fn::GetAtt": [str(table), "StreamArn"]}:
                return self.arns[f"{table}.StreamArn"]
            case _:
                return self.arns[logical_id(resource)]

    def receive(self, queue: str) -> "list[MessageTypeDef]":
        """Take up to ten messages off a queue; they stay in flight."""
        messages: list[MessageTypeDef] = (
            self.client("sqs")
            .receive_message(
                QueueUrl=self.names[queue],
                MaxNumberOfMessages=10,
                MessageAttributeNames=["All"],
                AttributeNames=["All"],
            )
            .get("Messages", [])
        )
        return messages

    def batch(self, queue: str) -> dict[str, Any]:
        """Take what is on a queue, as the event source mapping does."""
        return {
            "Records": [
                {
                    "messageId": message["MessageId"],
                    "receiptHandle": message["ReceiptHandle"],
                    "body": message["Body"],
                    "attributes": message["Attributes"],
                    "messageAttributes": {},
                }
                for message in self.receive(queue)
            ]
        }

    def changes(self) -> list[dict[str, Any]]:
        """Read the ledger's stream, as Lambda does; but by its owner.

        ministack asks for rights on all streams where the role has those on one.
        """
        stream, reader = self.arns["LedgerTable.StreamArn"], self.client("dynamodbstreams")
        (shard,) = reader.describe_stream(StreamArn=stream)["StreamDescription"]["Shards"]
        iterator = reader.get_shard_iterator(
            StreamArn=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        records = reader.get_records(ShardIterator=iterator)["Records"]
        changes: list[dict[str, Any]] = json.loads(json.dumps(records, default=str))
        return changes

    def batch_of(self, *bodies: str) -> dict[str, Any]:
        """Publish requests and take them off the queue again."""
        for body in bodies:
            self.client("sqs").send_message(QueueUrl=self.names["RequestsQueue"], MessageBody=body)
        batch = self.batch("RequestsQueue")
        assert sorted(record["body"] for record in batch["Records"]) == sorted(bodies)
        return batch


@pytest.fixture(scope="module")
def only_blip() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def blip(only_blip: Simulator) -> Simulator:
    """BLiP without what it took from earlier tests."""
    only_blip.clear()
    return only_blip


@pytest.fixture
def aws(only_aws: GuardedAws) -> GuardedAws:
    return only_aws.with_queues_of_its_own()


@pytest.fixture(scope="module")
def only_aws(
    tmp_path_factory: pytest.TempPathFactory, only_blip: Simulator
) -> Iterator[GuardedAws]:
    folder = tmp_path_factory.mktemp("aws")
    port = free_ports(1)
    command = [ROOT / ".venv-ministack/bin/python", "-P", ROOT / "tests/local/run_ministack.py"]
    environment = {
        "AUTH": "true",
        "BIND_HOST": HOST,
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "STATE_DIR": str(folder / "state"),
        "TMPDIR": str(folder),
    }
    with process(command, folder, environment, folder / "log"):
        wait_until(lambda: answers(port, "/_ministack/ready"), "the local AWS")
        guarded = GuardedAws(f"http://{HOST}:{port}")
        guarded.create_resources(
            {
                "default": {"base_url": only_blip.url, "key": only_blip.key, "namespace": "ns"},
                "asked": {
                    "base_url": only_blip.url,
                    "key": only_blip.key,
                    "receipts": "history",
                },
                "unfinished": {"key": "Key REPLACE_ME"},
            }
        )
        yield guarded


class Function:
    """The function in AWS's emulator of a sandbox."""

    def __init__(self, port: int, log: Path) -> None:
        self._port = port
        self._log = log

    def invoke(self, event: Mapping[str, Any]) -> Any:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=PATIENCE_SECONDS)
        connection.request("POST", "/2015-03-31/functions/function/invocations", json.dumps(event))
        answer = connection.getresponse().read()
        connection.close()
        return json.loads(answer)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")


@contextmanager
def function(
    name: str, artefacts: Path, aws: GuardedAws, folder: Path, *, without: str | None = None
) -> Iterator[Function]:
    """Start what was built, in a folder that stands for /var/task, with the layers for /opt.

    Without a right of its role, where one is named.
    """
    task, template = artefacts / name, load()
    port = free_ports(2)
    site_packages = ROOT / ".venv-sam/lib/python3.13/site-packages"
    emulator = site_packages / f"samcli/local/rapid/aws-lambda-rie-{ARCHITECTURE}"
    command = [
        *(emulator, "--runtime-interface-emulator-address", f"{HOST}:{port}"),
        *("--runtime-api-address", f"{HOST}:{port + 1}"),
        *(ROOT / ".venv-ministack/bin/python", "-m", "awslambdaric", "app.handler"),
    ]
    environment = {
        "PYTHONPATH": os.pathsep.join(str(artefacts / layer / "python") for layer in LAYERS),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LAMBDA_TASK_ROOT": str(task),
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_LAMBDA_FUNCTION_NAME": name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": template.value(template.properties(name)["Timeout"]),
        **aws.environment(name),
        **aws.session(name, without=without),
    }
    log = folder / name
    with process(command, task, environment, log):
        wait_until(lambda: answers(port, "/"), "the Runtime Interface Emulator")
        yield Function(port, log)


def a_request(name: str, **changes: Any) -> str:
    return json.dumps({"id": name, "to": RECIPIENT, "template": TEMPLATE} | changes)


def test_it_sends_with_the_rights_of_its_role(
    artefacts: Path, aws: GuardedAws, blip: Simulator, tmp_path: Path
) -> None:
    good, malformed = a_request("a-good-one"), '{"id": "cut-o'
    waiting = a_request("for-a-bot-not-set-up", bot="unfinished")
    batch = aws.batch_of(good, malformed, waiting)
    come_back = [r["messageId"] for r in batch["Records"] if r["body"] == waiting]

    with function("SendNotificationFunction", artefacts, aws, tmp_path) as send_notification:
        answer = send_notification.invoke(batch)
        log = send_notification.log()

    assert answer == {"batchItemFailures": [{"itemIdentifier": name} for name in come_back]}
    assert [message["phone"] for message in blip.inbox()] == [RECIPIENT]
    (letter,) = aws.receive("DeadLettersQueue")
    assert letter["Body"] == malformed
    assert letter["MessageAttributes"]["reason"]["StringValue"] == "malformed"
    assert "AccessDenied" not in log


def test_the_sample_event_is_what_lambda_hands_over(
    artefacts: Path, aws: GuardedAws, tmp_path: Path
) -> None:
    event = json.loads((ROOT / "events/lambda/send_notification.json").read_text(encoding="utf-8"))

    with function("SendNotificationFunction", artefacts, aws, tmp_path) as send_notification:
        answer = send_notification.invoke(event)

    assert answer == {"batchItemFailures": []}


def test_a_receipt_reaches_the_ledger_with_the_rights_of_two_roles(
    artefacts: Path, aws: GuardedAws, blip: Simulator, tmp_path: Path
) -> None:
    with function("SendNotificationFunction", artefacts, aws, tmp_path) as send_notification:
        send_notification.invoke(aws.batch_of(a_request("to-be-read")))
    (message,) = blip.inbox()
    receipt = {"id": message["id"], "from": message["to"], "event": "consumed"}
    request = {
        "headers": {"x-receipts-secret": WEBHOOK_SECRET},
        "body": json.dumps(receipt),
        "isBase64Encoded": False,
    }

    with function("ReceiveReceiptFunction", artefacts, aws, tmp_path) as receive_receipt:
        assert receive_receipt.invoke(request) == {"statusCode": 200}
        refused = receive_receipt.invoke(request | {"headers": {"x-receipts-secret": "guessed"}})
        log = receive_receipt.log()
    batch = aws.batch("ReceiptsQueue")
    with function("RecordReceiptFunction", artefacts, aws, tmp_path) as record_receipt:
        assert record_receipt.invoke(batch) == {"batchItemFailures": []}
        log += record_receipt.log()

    assert refused["statusCode"] == 401
    assert len(batch["Records"]) == 1
    item = aws.client("dynamodb").get_item(
        TableName="LedgerTable", Key={"key": {"S": message["id"]}}
    )["Item"]
    assert item["status"] == {"S": "consumed"}
    assert "AccessDenied" not in log


def test_it_asks_for_receipts_with_the_rights_of_its_role(
    artefacts: Path, aws: GuardedAws, blip: Simulator, tmp_path: Path
) -> None:
    template = TEMPLATE | {"namespace": "ns"}
    batch = aws.batch_of(a_request("to-be-asked-for", bot="asked", template=template))
    with function("SendNotificationFunction", artefacts, aws, tmp_path) as send_notification:
        assert send_notification.invoke(batch) == {"batchItemFailures": []}
    aws.client("dynamodb").update_item(
        TableName="LedgerTable",
        Key={"key": {"S": blip.inbox()[0]["id"]}},
        UpdateExpression="SET poll_at = :long_ago",
        ConditionExpression="attribute_exists(poll_at)",
        ExpressionAttributeValues={":long_ago": {"N": "1"}},
    )

    with function("PollReceiptsFunction", artefacts, aws, tmp_path) as poll_receipts:
        answer = poll_receipts.invoke({})
        log = poll_receipts.log()

    assert answer == {"asked": 1}
    assert "AccessDenied" not in log


def test_it_syncs_templates_with_the_rights_of_its_role(
    artefacts: Path, aws: GuardedAws, blip: Simulator, tmp_path: Path
) -> None:
    with function("SyncTemplatesFunction", artefacts, aws, tmp_path) as sync_templates:
        first = sync_templates.invoke({})
        blip.put_templates(Template(name="brand_new", language="pt_BR", body=2))
        answer = sync_templates.invoke({})
        log = sync_templates.log()

    assert answer["templates"]["asked"] == first["templates"]["asked"] + 1
    item = aws.client("dynamodb").get_item(
        TableName="IdentitiesTable", Key={"key": {"S": "template:asked/brand_new"}}
    )["Item"]
    assert item["languages"]["M"]["pt_BR"]["M"]["status"] == {"S": "APPROVED"}
    # It is new to a bot that was synced: an event, which the role may put.
    assert "template changed" in log
    assert "AccessDenied" not in log


def test_it_wakes_what_has_waited_with_the_rights_of_its_role(
    artefacts: Path, aws: GuardedAws, blip: Simulator, tmp_path: Path
) -> None:
    request = a_request("to-be-woken")
    batch = aws.batch_of(request)
    with function("SendNotificationFunction", artefacts, aws, tmp_path) as send_notification:
        assert send_notification.invoke(batch) == {"batchItemFailures": []}
    key = blip.inbox()[0]["id"]
    aws.client("dynamodb").update_item(
        TableName="LedgerTable",
        Key={"key": {"S": key}},
        UpdateExpression="SET #status = :waiting, wake_shard = :shard, wake_at = :long_ago",
        ConditionExpression="#status = :sent",
        ExpressionAttributeNames={"#status": "status"},
        ExpressionAttributeValues={
            ":waiting": {"S": "waiting"},
            ":sent": {"S": "sent"},
            ":shard": {"S": key[0]},
            ":long_ago": {"N": "1"},
        },
    )

    with function("WakeNotificationsFunction", artefacts, aws, tmp_path) as wake_notifications:
        answers = [wake_notifications.invoke({}) for _ in range(2)]
        log = wake_notifications.log()

    assert answers == [{"woken": 1}, {"woken": 0}]
    assert [message["Body"] for message in aws.receive("RequestsQueue")] == [request]
    assert "AccessDenied" not in log


def test_it_answers_producers_with_the_rights_of_its_role(
    artefacts: Path, aws: GuardedAws, tmp_path: Path
) -> None:
    event = json.loads((ROOT / "events/lambda/get_notification.json").read_text(encoding="utf-8"))
    context = event["requestContext"]
    cancel = event | {
        "routeKey": "DELETE /notifications/{id}",
        "requestContext": context | {"http": context["http"] | {"method": "DELETE"}},
    }

    with function("GetNotificationFunction", artefacts, aws, tmp_path) as get_notification:
        answers = [get_notification.invoke(each) for each in (event, cancel, event)]
        log = get_notification.log()

    assert [answer["statusCode"] for answer in answers] == [404, 200, 200]
    assert json.loads(answers[-1]["body"])["status"] == "cancelled"
    assert "AccessDenied" not in log


def test_it_forgets_with_the_rights_of_its_role(
    artefacts: Path, aws: GuardedAws, tmp_path: Path
) -> None:
    number = "+5531900001077"
    batch = aws.batch_of(a_request("to-be-forgotten", to=number))
    with function("SendNotificationFunction", artefacts, aws, tmp_path) as send_notification:
        assert send_notification.invoke(batch) == {"batchItemFailures": []}
    for queue in ("DeadLettersQueue", "ReceiptsDeadLettersQueue"):
        body = a_request("a-letter", to=number)
        aws.client("sqs").send_message(QueueUrl=aws.names[queue], MessageBody=body)

    with function("ForgetRecipientFunction", artefacts, aws, tmp_path) as forget_recipient:
        looked = forget_recipient.invoke({"to": number})
        erased = forget_recipient.invoke({"to": number, "dry_run": False})
        log = forget_recipient.log()

    assert looked["found"] == {"notifications": 1, "identities": 1, "dead_letters": 2}
    assert erased["erased"] == looked["found"]
    assert "AccessDenied" not in log
    assert number.removeprefix("+") not in log


def a_change(changes: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Choose the change of the ledger by which a notification was sent."""
    (sent,) = (
        change
        for change in changes
        if change["dynamodb"]["NewImage"].get("id") == {"S": name}
        and change["dynamodb"]["NewImage"]["status"] == {"S": "sent"}
    )
    return sent


def unreadable(change: dict[str, Any]) -> dict[str, Any]:
    image = change["dynamodb"]["NewImage"] | {"timeline": {"S": "what nobody has written"}}
    other = {"NewImage": image, "SequenceNumber": "1"}
    return change | {"dynamodb": change["dynamodb"] | other}


def test_it_publishes_with_the_rights_of_its_role(
    artefacts: Path, aws: GuardedAws, tmp_path: Path
) -> None:
    batch = aws.batch_of(a_request("to-be-published"))
    with function("SendNotificationFunction", artefacts, aws, tmp_path) as send_notification:
        assert send_notification.invoke(batch) == {"batchItemFailures": []}
    change = a_change(aws.changes(), "to-be-published")

    with function("PublishStatusEventsFunction", artefacts, aws, tmp_path) as publish:
        answer = publish.invoke({"Records": [unreadable(change), change]})
        log = publish.log()

    assert answer == {"batchItemFailures": []}
    assert len(re.findall(r'"changed_to_published":\s*\[', log)) == 1
    letters = [json.loads(letter["Body"]) for letter in aws.receive("UnpublishedQueue")]
    key = change["dynamodb"]["Keys"]["key"]["S"]
    # Other tests leave dead letters of their own.
    assert [letter["sequence_number"] for letter in letters if letter["key"] == key] == ["1"]
    assert "AccessDenied" not in log
    assert RECIPIENT.removeprefix("+") not in log


@pytest.mark.parametrize("right", ["events:PutEvents", "sqs:SendMessage"])
def test_publishing_needs_every_right_that_it_has(
    artefacts: Path, aws: GuardedAws, tmp_path: Path, right: str
) -> None:
    name = f"unpublished-without-{right}"
    batch = aws.batch_of(a_request(name))
    with function("SendNotificationFunction", artefacts, aws, tmp_path) as send_notification:
        assert send_notification.invoke(batch) == {"batchItemFailures": []}
    change = a_change(aws.changes(), name)

    with function(
        "PublishStatusEventsFunction", artefacts, aws, tmp_path, without=right
    ) as publish:
        answer = publish.invoke({"Records": [unreadable(change), change]})
        log = publish.log()

    # Nothing is lost: it comes again from where it could not go on, and no error is counted.
    number = "1" if right == "sqs:SendMessage" else change["dynamodb"]["SequenceNumber"]
    assert answer == {"batchItemFailures": [{"itemIdentifier": number}]}
    operation = right.partition(":")[2]
    refusals = [line for line in log.splitlines() if "AccessDenied" in line]
    assert any(f'"{operation}' in line for line in refusals)


# Used by Lambda itself.
OF_THE_POLLER = {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}
OF_THE_LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}
# Used where two sandboxes meet, an outcome was unknown, or a recipient is forgotten meanwhile.
NOT_TRIED = {"dynamodb:GetItem", "dynamodb:DeleteItem"}
TRIED = [
    "dynamodb:BatchGetItem",
    "dynamodb:UpdateItem",
    "secretsmanager:GetSecretValue",
    "sqs:ChangeMessageVisibility",
    "sqs:SendMessage",
]


def test_every_right_to_send_is_looked_at() -> None:
    policies = load().properties("SendNotificationRole")["Policies"]
    rights = {
        action
        for policy in policies
        for statement in policy["PolicyDocument"]["Statement"]
        for action in as_list(statement["Action"])
    }

    assert rights == {*TRIED, *NOT_TRIED, *OF_THE_POLLER, *OF_THE_LOGS}


@pytest.mark.parametrize("right", TRIED)
def test_sending_needs_every_right_that_it_has(
    artefacts: Path, aws: GuardedAws, tmp_path: Path, right: str
) -> None:
    """Shows as well that the local AWS refuses what a role does not allow."""
    batch = aws.batch_of(
        a_request(f"without-{right}"),
        f"malformed without {right}",
        a_request("waiting", bot="unfinished"),
    )

    with function(
        "SendNotificationFunction", artefacts, aws, tmp_path, without=right
    ) as send_notification:
        send_notification.invoke(batch)
        log = send_notification.log()

    # Where AWS's own message is not logged, the operation and the code are.
    operation = right.partition(":")[2]
    refusals = [line for line in log.splitlines() if "AccessDenied" in line]
    assert any(f"perform: {right}" in line or f'"{operation}' in line for line in refusals)
