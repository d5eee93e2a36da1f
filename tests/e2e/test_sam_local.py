"""`sam local` with the sample events, where there is a container engine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from tests.local.machine import HOST, PATIENCE_SECONDS, ROOT, free_ports, wait_until
from tests.local.stack import LocalStack

EVENTS = sorted((ROOT / "events/lambda").glob("*.json"))
PING = "import docker; docker.from_env().ping()"


def has_container_engine() -> bool:
    command = (ROOT / ".venv-sam/bin/python", "-c", PING)
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603


pytestmark = pytest.mark.skipif(
    not has_container_engine(), reason="sam local needs a container engine, and none answers"
)


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(port_base=free_ports(2)) as stack:
        yield stack


def command(stack: LocalStack, *arguments: object) -> list[str]:
    port = stack.aws.url.rpartition(":")[2]
    return [
        sys.executable,
        "-m",
        "tests.local.sam_local",
        "--port-base",
        port,
        *map(str, arguments),
    ]


def function_of(event: Path) -> str:
    return f"{event.stem.title().replace('_', '')}Function"


@contextlib.contextmanager
def running(stack: LocalStack, *arguments: object) -> Iterator[str]:
    """Keep a server of `sam local` up; give its URL."""
    port = free_ports(1)
    server = subprocess.Popen(  # noqa: S603 - our own command
        command(stack, *arguments, "--port", port), cwd=ROOT, start_new_session=True
    )
    url = f"http://{HOST}:{port}"

    def answers() -> bool:
        assert server.poll() is None
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url)
            return True
        return False

    try:
        wait_until(answers, "sam local")
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.stem)
def test_each_function_takes_its_sample_event(stack: LocalStack, event: Path) -> None:
    answer = subprocess.run(  # noqa: S603 - our own command
        command(stack, "invoke", function_of(event), "-e", event),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stderr
    assert "errorType" not in answer.stdout


def test_the_api_takes_receipts_from_who_knows_the_secret(stack: LocalStack) -> None:
    secret = stack.aws.secrets.get_secret_value(SecretId=stack.resources["WebhookSecret"])
    receipt = json.loads(
        json.loads((ROOT / "events/lambda/receive_receipt.json").read_text())["body"]
    )

    with (
        running(stack, "start-api") as url,
        httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as api,
    ):
        refused = api.post("/receipts", json=receipt)
        headers = {"X-Receipts-Secret": secret["SecretString"]}
        taken = api.post("/receipts", json=receipt, headers=headers)
        nothing = api.get("/notifications/nobody-published-it")

    assert (refused.status_code, taken.status_code) == (401, 200)
    assert (nothing.status_code, nothing.headers["content-type"][:10]) == (404, "text/plain")


def test_functions_can_be_invoked_as_in_lambda(stack: LocalStack) -> None:
    event = ROOT / "events/lambda/poll_receipts.json"
    with running(stack, "start-lambda") as url:
        session = boto3.Session("local", "local", region_name="us-east-1")
        client: Any = session.client("lambda", endpoint_url=url)
        answer = client.invoke(FunctionName=function_of(event), Payload=event.read_bytes())

    assert json.loads(answer["Payload"].read()) == {"asked": 0}
