"""A deployed stack as commands reach it, over moto, and a terminal to read them on."""

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import boto3

from functions.cli import words
from notifier.entrypoints.forget_recipient import ForgetRecipient, forget_recipient
from notifier.entrypoints.get_notification import GetNotification, get_notification
from notifier.settings import ForgetRecipientSettings, GetNotificationSettings
from tests.integration.conftest import Aws
from tests.support.lambda_runtime import a_context


@dataclass
class Deployed:
    """The resources of a stack, as CloudFormation would name them, and its functions.

    Attributes:
        endpoint: of a local stack; None for AWS.
        queues: URLs of those that the requests do not need, by logical id.
    """

    aws: Aws
    webhook_secret: str = ""
    all_receipts: str = "false"
    page: int = 1000
    name: str = "blip-notifier"
    endpoint: str | None = None
    queues: dict[str, str] = field(default_factory=dict)
    session: Any = field(default_factory=lambda: SimpleNamespace(region_name="us-east-1"))

    def client(self, service: str) -> Any:
        if service == "lambda":
            return self
        client = boto3.client(service)  # type: ignore[call-overload] # whichever is asked for
        client.meta.events.register(
            "provide-client-params.dynamodb.Scan",
            lambda params, **_: params | {"Limit": self.page},
        )
        return client

    def resources(self) -> dict[str, str]:
        alarms = ("DeadLettersAlarm", "BotShutAlarm")
        return {
            "LedgerTable": "ledger",
            "IdentitiesTable": "identities",
            "BotsSecret": self.aws.secret,
            "WebhookSecret": self.webhook_secret,
            "RequestsQueue": self.aws.requests_url,
            "DeadLettersQueue": self.aws.dead_letters_url,
            "PublishStatusEventsFunction": "publish-status-events",
            "SendNotificationLogs": "/aws/lambda/send-notification",
            "Dashboard": "Dashboard-1A2B3C",
            **{alarm: f"{self.name}-{alarm}-1A2B3C" for alarm in alarms},
            **self.queues,
        }

    def physical_id(self, logical_id: str) -> str:
        return self.resources()[logical_id]

    def command(self, target: str, variables: str = "", arguments: Sequence[str] = ()) -> str:
        return words.make(target, variables, arguments)

    def invoke(self, function: str, event: dict[str, Any]) -> dict[str, Any]:
        if function == "GetNotificationFunction":
            return self._get_notification.handle(event, a_context())
        assert function == "ForgetRecipientFunction"
        return self._forget_recipient.handle(event, a_context())

    @cached_property
    def _get_notification(self) -> GetNotification:
        return get_notification(GetNotificationSettings("ledger"))

    @cached_property
    def _forget_recipient(self) -> ForgetRecipient:
        return forget_recipient(
            ForgetRecipientSettings(
                "ledger",
                "identities",
                self.aws.dead_letters_url,
                self.queues["ReceiptsDeadLettersQueue"],
            )
        )

    def get_function_configuration(self, **function: str) -> Any:
        """Stand in for Lambda, which moto gives no function without an archive and a role."""
        assert function == {"FunctionName": "publish-status-events"}
        variables = {
            "EVENT_BUS": "default",
            "UNPUBLISHED_QUEUE_URL": "https://not-used-here",
            "PUBLISH_ALL_RECEIPTS": self.all_receipts,
            "POWERTOOLS_SERVICE_NAME": "blip-notifier",
        }
        return {"Environment": {"Variables": variables}}


class Terminal:
    """What a pseudo-terminal has shown."""

    text = ""


@contextlib.contextmanager
def terminal(columns: int, typed: str = "") -> Iterator[Terminal]:
    """Make a pseudo-terminal of this width the process's standard streams.

    Args:
        columns: its width.
        typed: what a person types on it.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = Terminal()
    chunks: list[bytes] = []
    reader = threading.Thread(target=_read, args=(master, chunks, typed.encode()))
    kept = [(number, os.dup(number)) for number in (0, 1, 2)]
    streams = sys.stdin, sys.stdout, sys.stderr
    try:
        for number, _ in kept:
            os.dup2(slave, number)
        os.close(slave)
        reader.start()
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - closed below
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - closed with the command
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - closed with the command
        yield shown
    finally:
        for stream in (sys.stdout, sys.stderr, sys.stdin):
            stream.close()
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        reader.join()
        os.close(master)
        shown.text = b"".join(chunks).decode().replace("\r\n", "\n")


def _read(master: int, chunks: list[bytes], typed: bytes) -> None:
    """Read until the last copy of the other side is closed; type when there is a prompt."""
    with contextlib.suppress(OSError):
        while chunk := os.read(master, 65536):
            chunks.append(chunk)
            if typed and b"".join(chunks).endswith(b": "):
                os.write(master, typed)
                typed = b""
