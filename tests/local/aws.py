"""The local AWS: ministack in a process of its own, and boto3's clients for it."""

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import boto3
import botocore.session
from botocore.config import Config

from tests.local.machine import (
    HOST,
    ROOT,
    StackError,
    require_free,
    tail,
    wait_until,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sqs import SQSClient

REGION = "us-east-1"


class Aws:
    """Clients for one AWS endpoint that is not AWS.

    Credentials are made up and no profile of this machine is read: nothing can reach an account.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        # A proxy of this machine must not be asked for 127.0.0.1.
        for name in ("NO_PROXY", "no_proxy"):
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST, "localhost"]))
        session = botocore.session.Session(
            session_vars={
                "profile": (None, None, None, None),
                "config_file": (None, None, os.devnull, None),
                "credentials_file": (None, None, os.devnull, None),
            }
        )
        session.set_credentials("local", "local")
        self._session = boto3.session.Session(botocore_session=session, region_name=REGION)
        self._options = Config(
            retries={"mode": "standard", "total_max_attempts": 5}, max_pool_connections=32
        )
        self.sqs: SQSClient = self.client("sqs")
        self.dynamodb: DynamoDBClient = self.client("dynamodb")
        self.secrets: SecretsManagerClient = self.client("secretsmanager")
        self.functions = self.client("lambda")
        self.cloudwatch = self.client("cloudwatch")
        self.stacks = self.client("cloudformation")

    def client(self, service: str) -> Any:
        """Make boto3's client of a service."""
        return self._session.client(service, endpoint_url=self.url, config=self._options)  # type: ignore[call-overload] # any


class Ministack:
    """A local AWS in one process, with nothing in it.

    Attributes:
        url: its endpoint.
        log: what it and the functions in it print.
    """

    def __init__(self, port: int, home: Path, functions_call: str | None = None) -> None:
        """Make it.

        Args:
            port: where it listens.
            home: its folder.
            functions_call: what its functions take for AWS instead of it.
        """
        self.port = port
        self.url = f"http://{HOST}:{port}"
        self.home = home
        self.log = home / "ministack.log"
        self._functions_call = functions_call
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it; it answers a little later.

        Raises:
            StackError: its port is in use.
        """
        require_free(self.port)
        shutil.rmtree(self.home, ignore_errors=True)
        temporary = self.home / "tmp"
        temporary.mkdir(parents=True)
        passed_on = (
            "PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR",
            "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy",
        )  # fmt: skip
        environment = {name: os.environ[name] for name in passed_on if name in os.environ} | {
            "HOME": str(self.home),
            "TMPDIR": str(temporary),
            "STATE_DIR": str(self.home / "state"),
            "S3_DATA_DIR": str(self.home / "s3"),
            "GATEWAY_PORT": str(self.port),
            # It binds all interfaces by default.
            "BIND_HOST": HOST,
            # Listeners of other services, on fixed ports.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "NO_PROXY": f"{HOST},localhost",
            "no_proxy": f"{HOST},localhost",
        }
        if self._functions_call:
            environment["AWS_ENDPOINT_URL"] = self._functions_call
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
                [ROOT / ".venv-ministack/bin/python", "-P", ROOT / "tests/local/run_ministack.py"],
                cwd=self.home,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            StackError: it does not, or was stopped meanwhile.
        """
        try:
            wait_until(self._answers, "the local AWS to start")
        except TimeoutError as error:
            raise StackError(f"{error}; its log, {self.log}, ends with\n{tail(self.log)}") from None

    def stop(self) -> None:
        """End it with all that it started; without effect where it is not running."""
        if self._process is None:
            return
        # The group, because ministack leaves a sandbox running that is in the middle of something.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._process = None
        # The sandboxes' folders.
        shutil.rmtree(self.home / "tmp", ignore_errors=True)

    def _answers(self) -> bool:
        process = self._process
        if process is None or process.poll() is not None:
            raise StackError(
                f"the local AWS ended; its log, {self.log}, ends with\n{tail(self.log)}"
            )
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/_ministack/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()
