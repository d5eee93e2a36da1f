"""What the competitors run against: one AWS, one BLiP, each in a process of its own.

No competitor shares a process with what it is measured against, or with another competitor.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from notifier.domain.notification import ledger_key
from tests.benchmarks.quota import share_of
from tests.local.aws import REGION
from tests.local.stack import NAMESPACE
from tests.template.transformed import load

ROOT = Path(__file__).parents[2]
OURS, TEXTBOOK, FLOOR = "ours", "textbook", "floor"
COMPETITORS = (OURS, TEXTBOOK, FLOOR)
# What a call to DynamoDB in the same region takes; the stand-in answers neither sooner nor later.
AWS_LATENCY_SECONDS = 0.004
# Far above what one process can send: the rate limiter is on and delays no request.
FULL_SPEED = 10_000
REFUSED = "refused_template"
WEBHOOK_SECRET = "what BLiP shows at the webhook"  # noqa: S105
# The functions after sending, which have no other competitor.
AFTERWARDS = {
    "receive_receipt": "ReceiveReceiptFunction",
    "record_receipt": "RecordReceiptFunction",
    "publish_status_events": "PublishStatusEventsFunction",
}


@contextmanager
def _process(*command: object, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(  # noqa: S603 - our own modules
        [sys.executable, *(str(part) for part in command)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'layers/notifier'}"}
        | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _line(running: subprocess.Popen[str], what: str) -> str:
    line = _pipe(running.stdout).readline()
    if not line:
        raise RuntimeError(f"{what} ended with {running.wait()}: see above")
    return line


def _http(method: str, url: str, document: Any = None, **headers: str) -> Any:
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
        text = answer.read()
    return json.loads(text) if text else None


class Function:
    """A competitor's process.

    Attributes:
        name: what its figures stand under.
        pid: its process id.
        start_seconds: from the start of the process until it took events.
    """

    def __init__(self, name: str, running: subprocess.Popen[str], start_seconds: float) -> None:
        self.name = name
        self.pid = running.pid
        self.start_seconds = start_seconds
        self._running = running

    def invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        """Invoke it with an event; return what the worker measured."""
        print(json.dumps(event), file=_pipe(self._running.stdin))
        figures: dict[str, Any] = json.loads(_line(self._running, self.name))
        return figures


@dataclass
class Lab:
    """One AWS and one BLiP, up and empty."""

    aws: str
    blip: str
    key: str
    folder: Path
    cleanup: ExitStack

    def function(self, name: str) -> Function:
        """Start a competitor."""
        return self.cleanup.enter_context(self._running(name, name, ()))

    @contextmanager
    def sandbox(self, memory_mb: int) -> Iterator[Function]:
        """Start ours with the share of a processor that it has at this MemorySize.

        The start is under the quota as well.
        """
        quota = ("-m", "tests.benchmarks.quota", share_of(memory_mb))
        with _process(*quota, environment={}) as governor:
            _line(governor, "the quota")
            with self._running(f"{memory_mb} MB", OURS, (governor,)) as function:
                yield function

    @contextmanager
    def _running(
        self, name: str, competitor: str, governors: Sequence[subprocess.Popen[str]]
    ) -> Iterator[Function]:
        log = self.folder / f"{competitor}-{len(list(self.folder.iterdir()))}.log"
        command = ("-m", "tests.benchmarks.worker", competitor, log)
        environment = self.environment(AFTERWARDS.get(competitor, "SendNotificationFunction"))
        begun = time.perf_counter()
        with _process(*command, environment=environment) as running:
            for governor in governors:
                print(running.pid, file=_pipe(governor.stdin))
            _line(running, name)
            yield Function(name, running, time.perf_counter() - begun)

    def environment(self, function: str) -> dict[str, str]:
        """Return the variables as the template sets them, with all its parameters as they are."""
        template = load()
        names = {
            "LedgerTable": "ledger",
            "IdentitiesTable": "identities",
            "RequestsQueue": f"{self.aws}/0/requests",
            "DeadLettersQueue": f"{self.aws}/0/dead-letters",
            "ReceiptsQueue": f"{self.aws}/0/receipts",
            "UnpublishedQueue": f"{self.aws}/0/unpublished",
            "BotsSecret": "bots",
            "WebhookSecret": "webhook",
            "AWS::StackName": "blip-notifier",
        }
        properties = template.properties(function)
        variables = properties["Environment"]["Variables"]
        return {
            name: names.get(value["Ref"]) or template.parameters[value["Ref"]]
            if isinstance(value, dict)
            else value
            for name, value in variables.items()
        } | {
            "IDEMPOTENCY_TABLE": "idempotency",
            "TEXTBOOK_IDENTITIES_TABLE": "textbook-identities",
            "AWS_ENDPOINT_URL": self.aws,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            # Powertools asks for it.
            "AWS_LAMBDA_FUNCTION_NAME": "SendNotification",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(properties["MemorySize"]),
        }

    def put(self, items: dict[str, dict[str, Any]], **other: Any) -> None:
        """Put items into tables by key, and perhaps secrets."""
        self._control("Put", {"items": items} | other)

    def fill(self, table: str, item: dict[str, Any], count: int) -> None:
        """Fill a table with so many items, all like this one."""
        self._control("Fill", {"table": table, "item": item, "count": count})

    def stream(self) -> dict[str, Any]:
        """Return what the ledger's stream has carried since then, as a function's event."""
        event: dict[str, Any] = self._control("Stream", {})
        return event

    def counts(self) -> dict[str, Any]:
        """Return what AWS has counted since the last time."""
        counts: dict[str, Any] = self._control("Counts", {})
        return counts

    def _control(self, what: str, document: Any) -> Any:
        return _http("POST", self.aws, document, **{"X-Amz-Target": f"Control.{what}"})

    def latency(self, seconds: float) -> None:
        """Set how long BLiP takes for each answer."""
        self._blip("PUT", "settings", {"latency_seconds": seconds})

    def plan(self, per_second: float) -> None:
        """Return the bot a plan, at BLiP and in our secret."""
        both = {"messages_per_second": per_second, "commands_per_second": per_second}
        self._blip("PUT", "bots", {"key": self.key} | both)
        bot = {"base_url": self.blip, "key": self.key, "namespace": NAMESPACE} | both
        secrets = {"bots": json.dumps({"default": bot}), "webhook": WEBHOOK_SECRET}
        self.put({}, secrets=secrets)

    def accepted(self) -> int:
        """Return how many messages BLiP has taken since the last time."""
        statuses = self._blip("GET", "statistics")["requests"].get("/messages", {})
        self._blip("DELETE", "inbox")
        return int(statuses.get("202", 0))

    def _blip(self, method: str, path: str, document: Any = None) -> Any:
        return _http(method, f"{self.blip}/_simulator/{path}", document)


@contextmanager
def lab() -> Iterator[Lab]:
    """Start both, with a bot whose plan delays no request."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        command = ("-m", "tests.benchmarks.aws", AWS_LATENCY_SECONDS)
        aws = cleanup.enter_context(_process(*command, environment={}))
        blip = cleanup.enter_context(_process("-m", "tests.local.blip", environment={}))
        where = json.loads(_line(blip, "the simulator"))
        (key,) = where["keys"].values()
        port = _line(aws, "the stand-in for AWS").strip()
        made = Lab(f"http://127.0.0.1:{port}", where["url"], key, folder, cleanup)
        made.plan(FULL_SPEED)
        made.put({"identities": registry()})
        refusal = {"path": "messages", "template": REFUSED, "status": 400, "code": 24}
        made._blip("POST", "faults", refusal)
        yield made


def registry() -> dict[str, dict[str, Any]]:
    """Return the items of the templates that are sent, as a sync has written them."""
    asked_at = int(1000 * time.time())
    languages = {"pt_BR": {"status": "APPROVED", "category": "UTILITY", "body": 2}}
    return {
        key: {"key": key, "asked_at": asked_at, "languages": languages}
        for key in (f"template:default/{name}" for name in ("order_shipped", REFUSED))
    }


# --- Requests -------------------------------------------------------------------------------------

_number = 0


def batch(lab: Lab, known: int, new: int, refused: int = 0) -> list[dict[str, Any]]:
    """Return records for new recipients, except for the known ones.

    The identities of the known ones are in the tables and in no sandbox's memory. The last ones
    name a template that BLiP refuses.
    """
    global _number  # noqa: PLW0603 - no number is ever used twice
    records = []
    ours, textbook = {}, {}
    now = int(time.time())
    for index in range(known + new):
        _number += 1
        # Beyond the numbers that the simulator has something special in mind for.
        phone = f"+55319{10_000_000 + _number:08}"
        if index < known:
            address = {"address": f"{phone[1:]}@wa.gw.msging.net"}
            good = {"good_until": (now + 86_400) * 1000, "expires_at": now + 86_400}
            ours[f"default/{phone}"] = {"key": f"default/{phone}"} | address | good
            textbook[phone] = {"key": phone, "expires_at": now + 86_400} | address
        last = index >= known + new - refused
        template = REFUSED if last else "order_shipped"
        records.append(record(_number, _request(_number, phone, template)))
    if known:
        lab.put({"identities": ours, "textbook-identities": textbook})
    return records


def _request(number: int, phone: str, template: str) -> dict[str, Any]:
    return {
        "id": f"order-{number}-shipped",
        "to": phone,
        "template": {"name": template, "language": "pt_BR", "body": ["Maria", str(number)]},
        "metadata": {"order": str(number)},
    }


def record(number: int, document: dict[str, Any]) -> dict[str, Any]:
    """Make a record as Lambda hands it over."""
    return {
        "messageId": f"00000000-0000-0000-0000-{number:012}",
        "receiptHandle": str(number),
        "body": json.dumps(document),
        "attributes": {
            "SentTimestamp": str(int(1000 * time.time())),
            "ApproximateReceiveCount": "1",
        },
        "messageAttributes": {},
        "eventSource": "aws:sqs",
    }


def receipts(records: list[dict[str, Any]], status: str) -> list[dict[str, Any]]:
    """Make the receipts of one status for all that a batch has sent."""
    ids = [ledger_key("default", json.loads(sent["body"])["id"]) for sent in records]
    return [
        {
            "id": name,
            "from": "5531910000001@wa.gw.msging.net",
            "to": "simulated@msging.net/!az-iris4",
            "event": status,
            "metadata": {"#message.uniqueId": name},
        }
        for name in ids
    ]
