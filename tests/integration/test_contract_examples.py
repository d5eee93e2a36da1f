"""The examples in events/README.md that ask the status API sign as AWS expects."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

README = Path(__file__).parents[2].joinpath("events", "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Ask, and take back")[2].partition("\n## ")[0]
REGION = "sa-east-1"


@dataclass
class Api:
    """Answers every GET and keeps its path and its headers."""

    url: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def api() -> Iterator[Api]:
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            api.asked.append((self.path, headers))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        api.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()


def example(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return str(found)


def run(command: list[str], api: Api, token: str | None) -> None:
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "NOTIFICATIONS_URL": f"{api.url}/notifications",
    } | ({} if token is None else {"AWS_SESSION_TOKEN": token})
    ran = subprocess.run(  # noqa: S603 - the example of our own README
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "{}"), ran.stderr


def expected_signature(api: Api, path: str, headers: dict[str, str]) -> str:
    """Return the signature that AWS computes for the received request."""
    [signed] = re.findall(r"SignedHeaders=([^,]+)", headers["authorization"])
    names = signed.split(";")
    request = AWSRequest("GET", f"{api.url}{path}", {name: headers[name] for name in names})
    request.context["timestamp"] = headers["x-amz-date"]
    credentials = Credentials("AKIDEXAMPLE", "secret", headers.get("x-amz-security-token"))
    auth = SigV4Auth(credentials, "execute-api", REGION)
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)


@pytest.mark.parametrize("token", [None, "", "a+token/with=signs"])
@pytest.mark.parametrize(
    ("language", "identifier"), [("sh", "order-981-shipped"), ("python", "order-981:shipped")]
)
def test_example_signs_as_aws_expects(
    api: Api, language: str, identifier: str, token: str | None
) -> None:
    shells = {"sh": ["bash", "-euc"], "python": [sys.executable, "-c"]}
    run([*shells[language], example(language)], api, token)
    [(path, headers)] = api.asked
    assert path == f"/notifications/{identifier}?bot=default"
    assert headers.get("x-amz-security-token") == (token or None)
    [signature] = re.findall(r"Signature=(\w+)", headers["authorization"])
    assert signature == expected_signature(api, path, headers)
