"""The contract's ten lines: they publish a valid request to the queue of the environment."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from notifier.contract.parse import parse

EVENTS = Path(__file__).parents[2] / "events"
SECTION = (
    (EVENTS / "README.md")
    .read_text(encoding="utf-8")
    .partition("## Try it")[2]
    .partition("\n## ")[0]
)


@pytest.fixture
def sqs() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address that takes calls of SQS, and the calls."""
    calls: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            calls.append({"action": self.headers["X-Amz-Target"], **json.loads(body)})
            answer = b'{"MessageId": "1"}'
            self.send_response(200)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", calls
        finally:
            server.shutdown()
            thread.join()


def example(language: str) -> str:
    [*_, found] = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return str(found)


def test_python_example_publishes_a_valid_request(sqs: tuple[str, list[dict[str, Any]]]) -> None:
    url, calls = sqs
    ran = subprocess.run(  # noqa: S603 - the example of our own contract
        [sys.executable, "-c", example("python")],
        env={
            "AWS_ENDPOINT_URL": url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "NO_PROXY": "127.0.0.1",
            "REQUESTS_QUEUE_URL": f"{url}/000000000000/requests",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    [call] = calls
    assert call["action"] == "AmazonSQS.SendMessage"
    assert call["QueueUrl"] == f"{url}/000000000000/requests"
    published = parse(call["MessageBody"]).request
    assert call["MessageGroupId"] == published.bot
    assert f'"{published.id}"' not in "".join(
        path.read_text(encoding="utf-8") for path in EVENTS.glob("*.json")
    )


@pytest.mark.parametrize("language", ["python", "js"])
def test_example_has_ten_lines_at_most(language: str) -> None:
    lines = [line for line in example(language).splitlines() if line.strip()]

    assert len(lines) <= 10
