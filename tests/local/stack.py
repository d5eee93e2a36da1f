"""The product on this machine: a local AWS, the real template deployed into it, and a BLiP.

Nothing here is part of what is shipped, and nothing that is shipped knows about it. What the local
AWS does wrong or not at all is worked around in this file, in one place each with its reason.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import boto3
import botocore.session
import yaml
from botocore.config import Config

from notifier.domain.bots import InvalidBot, parse_bots
from tests.local.blip import Bot, Simulator
from tests.local.metrics import Metrics, fit_for_ministack

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_sqs import SQSClient

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".local"
HOST = "127.0.0.1"
REGION = "us-east-1"
STACK = "blip-notifier"
DEFAULT_PORT_BASE = 4566
# Which bots the simulator has: the names that requests use, and its own names for them.
SIMULATED_BOTS = {"default": "simulated", "clinic": "clinic"}
NAMESPACE = "c8e7b1d4_5f2a_4e0b_9a3c_6d1f0e2b7a95"


class StackError(Exception):
    """The local stack cannot go on. The text tells a person why, and what to do."""


# Longer than anything takes on a busy machine: only what fails takes so long.
PATIENCE_SECONDS = 300.0


def wait_until[T](
    condition: Callable[[], T],
    what: str,
    *,
    at_most: float = PATIENCE_SECONDS,
    every: float = 0.02,
) -> T:
    """Return the first true value of a condition.

    Args:
        condition: asked again and again.
        what: is waited for, in the message of the error.
        at_most: how many seconds to wait.
        every: how many seconds pass between two questions.

    Raises:
        TimeoutError: it did not become true in time.
    """
    deadline = time.monotonic() + at_most
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {at_most:g} s for {what}")
        time.sleep(every)
    return value


def tail(log: Path, lines: int = 25) -> str:
    """Return the end of a log, for a message to a person."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])


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
        try:
            wait_until(self._answers, "the local AWS to start")
        except TimeoutError as error:
            self.__exit__(None, None, None)
            raise StackError(f"{error}; its log, {self.log}, ends with\n{tail(self.log)}") from None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        if self._process and self._process.poll() is not None:
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


class LocalStack:
    """The product, deployed and ready for requests.

    Attributes:
        aws: clients for where it is deployed.
        home: this stack's folder, with the logs.
        simulator: its BLiP; None where another one was named.
        bots: the names that requests can use.
        name: CloudFormation's for it.
        template: what was deployed.
        requests_queue: its URL, as the other queue's, for the clients in `aws`.
        ministack: the local AWS; None where another endpoint was named.
    """

    def __init__(
        self,
        *,
        port_base: int = DEFAULT_PORT_BASE,
        blip: tuple[str, str] | None = None,
        aws_url: str | None = None,
        parameters: Mapping[str, str] | None = None,
        functions_call: str | None = None,
        name: str = STACK,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.home = STATE / str(port_base)
        self._port_base = port_base
        self._blip = blip
        self._aws_url = aws_url
        self._functions_call = functions_call
        self._parameters = {
            "Architecture": _architecture(),
            "AllowedRecipients": "+",
        } | dict(parameters or {})
        self._tell = tell
        self._cleanup = contextlib.ExitStack()
        self.simulator: Simulator | None = None
        self.ministack: Ministack | None = None

    def __enter__(self) -> Self:
        with self._cleanup:
            self._start()
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def _start(self) -> None:
        secret = self._bots_secret()
        self.bots = _checked(secret)
        if self._aws_url is None:
            self.ministack = self._cleanup.enter_context(
                Ministack(self._port_base, self.home, self._functions_call)
            )
        self.home.mkdir(parents=True, exist_ok=True)
        self.aws = Aws(self.ministack.url if self.ministack else str(self._aws_url))
        self.template = content = self.deploy()
        if self.simulator:
            self._send_receipts_here(self.simulator)
        self._finish_tables(content)
        self._finish_mappings()
        self.aws.secrets.put_secret_value(
            SecretId=self.resources["BotsSecret"], SecretString=secret
        )
        if self.ministack:
            self._cleanup.enter_context(self.metrics(self.ministack.log))

    def deploy(self, **parameters: str) -> dict[str, Any]:
        """Deploy the template, with other values for some parameters; give what was deployed."""
        self._parameters |= parameters
        with _built(self._parameters["Architecture"], self.home, self._tell) as template:
            content: dict[str, Any] = yaml.safe_load(template.read_text())
            self._check_parameters(content["Parameters"])
            self._tell("deploying the template")
            self._deploy(template)
        self._find_resources()
        return content

    def metrics(self, log: Path) -> Metrics:
        """Return what tells the local CloudWatch of this stack, from the log of its functions."""
        return Metrics(self.aws, self.name, self.template, self.resources, log)

    def ringing(self) -> dict[str, str]:
        """Return the alarms that ring, by logical id, each with its description."""
        alarms = self.aws.cloudwatch.describe_alarms(StateValue="ALARM")["MetricAlarms"]
        logical = {physical: name for name, physical in self.resources.items()}
        return {
            logical[one["AlarmName"]]: one["AlarmDescription"]
            for one in alarms
            if one["AlarmName"] in logical  # the others are another stack's
        }

    def _bots_secret(self) -> str:
        """Start the simulator, where no other BLiP was named; give the secret's text for either."""
        if self._blip:
            url, key = self._blip
            return json.dumps({"default": {"base_url": url, "key": key, "namespace": NAMESPACE}})
        port = self._port_base + 1
        require_free(port)
        bots = {name: Bot(name=simulated) for name, simulated in SIMULATED_BOTS.items()}
        self.simulator = self._cleanup.enter_context(
            Simulator(bots=list(bots.values()), host=HOST, port=port)
        )
        return json.dumps(
            {
                name: {
                    "base_url": self.simulator.url,
                    "key": bot.key,
                    "namespace": NAMESPACE,
                    "messages_per_second": bot.messages_per_second,
                    "commands_per_second": bot.commands_per_second,
                }
                for name, bot in bots.items()
            }
        )

    def _check_parameters(self, known: dict[str, Any]) -> None:
        """Refuse a misspelt parameter: SAM CLI lets it vanish."""
        if unknown := self._parameters.keys() - known.keys():
            raise StackError(
                f"the template has no parameter {', '.join(sorted(unknown))}; "
                f"it has {', '.join(sorted(known))}"
            )

    def _deploy(self, template: Path) -> None:
        _run_sam(
            "deploy",
            *("--template-file", template, "--stack-name", self.name, "--region", REGION),
            *("--resolve-s3", "--capabilities", "CAPABILITY_IAM"),
            *("--no-confirm-changeset", "--no-fail-on-empty-changeset", "--no-progressbar"),
            *("--parameter-overrides", *(f"{k}={v}" for k, v in self._parameters.items())),
            log=self.home / "sam-deploy.log",
            environment={
                "AWS_ENDPOINT_URL": self.aws.url,
                "AWS_ACCESS_KEY_ID": "local",
                "AWS_SECRET_ACCESS_KEY": "local",
            },
        )

    def _find_resources(self) -> None:
        found = self.aws.stacks.describe_stack_resources(StackName=self.name)["StackResources"]
        self.resources = {
            resource["LogicalResourceId"]: resource["PhysicalResourceId"] for resource in found
        }
        self.requests_queue = self.resources["RequestsQueue"]
        self.dead_letters_queue = self.resources["DeadLettersQueue"]
        self.ledger_table = self.resources["LedgerTable"]
        self.identities_table = self.resources["IdentitiesTable"]

    def _send_receipts_here(self, simulator: Simulator) -> None:
        """Return the simulator where receipts go, as the portal is told where there is a real BLiP.

        ministack has no name of its own for each API: it goes by the host header.
        """
        api = self.resources["HttpApi"]
        secret = self.aws.secrets.get_secret_value(SecretId=self.resources["WebhookSecret"])
        simulator.configure(
            receipts={
                "url": f"{self.aws.url}/receipts",
                "headers": {
                    "Host": f"{api}.execute-api.localhost:{self._port_base}",
                    "X-Receipts-Secret": secret["SecretString"],
                },
                # ministack starts a sandbox for each call that finds none free. Many that start at
                # once on a small machine need longer than the function may take.
                "at_once": 3,
                "timeout_seconds": 30,
            }
        )

    def _finish_tables(self, template: dict[str, Any]) -> None:
        """Switch on the tables' time to live, which ministack's CloudFormation leaves out."""
        for name, resource in template["Resources"].items():
            wanted = resource["Properties"].get("TimeToLiveSpecification")
            if resource["Type"] == "AWS::DynamoDB::Table" and wanted:
                table = self.resources[name]
                answer = self.aws.dynamodb.describe_time_to_live(TableName=table)
                if answer["TimeToLiveDescription"].get("TimeToLiveStatus") != "ENABLED":
                    self.aws.dynamodb.update_time_to_live(
                        TableName=table, TimeToLiveSpecification=wanted
                    )

    def _finish_mappings(self) -> None:
        """Return the mappings their limits as numbers.

        ministack's CloudFormation hands on a parameter as the text that it came in, and its poller
        then fails on it for good.
        """
        for mapping in self.aws.functions.list_event_source_mappings()["EventSourceMappings"]:
            limit = mapping.get("ScalingConfig", {}).get("MaximumConcurrency")
            if limit is not None:
                self.aws.functions.update_event_source_mapping(
                    UUID=mapping["UUID"], ScalingConfig={"MaximumConcurrency": int(limit)}
                )


def _checked(secret: str) -> tuple[str, ...]:
    """Return the names of the bots in a secret.

    Raises:
        StackError: an address or a key that was given for a bot cannot be used.
    """
    bots = parse_bots(secret)
    for bot in bots.values():
        if isinstance(bot, InvalidBot):
            raise StackError(f"--blip and --key cannot be used: {bot.problem}")
    return tuple(bots)


def _architecture() -> str:
    return "arm64" if platform.machine().lower() in {"arm64", "aarch64"} else "x86_64"


@contextlib.contextmanager
def _built(architecture: str, home: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """Return the template as built and made fit for a local AWS; nobody builds meanwhile.

    Not in `.aws-sam/build`, where `sam deploy` to the real AWS would find it.
    """
    build, template = STATE / "build", STATE / "build/local.yaml"
    STATE.mkdir(exist_ok=True)
    with (STATE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = _sources(architecture)
        mark = build / "sources"
        if not mark.exists() or mark.read_text() != sources:
            tell("building the functions and layers")
            mark.unlink(missing_ok=True)
            _run_sam(
                "build",
                *("--build-dir", build, "--cache-dir", STATE / "cache", "--cached", "--parallel"),
                *("--parameter-overrides", f"Architecture={architecture}"),
                log=home / "sam-build.log",
            )
            built = yaml.safe_load((build / "template.yaml").read_text())
            template.write_text(yaml.safe_dump(_localised(built), sort_keys=False))
            mark.write_text(sources)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield template


def _sources(architecture: str) -> str:
    """Return one state of everything that goes into the build from another."""
    digest = hashlib.sha256(architecture.encode())
    local = Path(__file__).parent
    files = [ROOT / "template.yaml", ROOT / "uv.lock", local / "stack.py", local / "metrics.py"]
    for folder in ("functions", "layers"):
        files += sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())
    for path in files:
        if "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(ROOT)} {content}\n".encode())
    return digest.hexdigest()


def _localised(template: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a built template what a local AWS refuses.

    The tests of the template see to what is left out here.
    """
    for resource in template["Resources"].values():
        # ministack refuses a template with CodeDeploy's types in it, also under a condition.
        resource.get("Properties", {}).pop("DeploymentPreference", None)
    fit_for_ministack(template)
    return template


def _run_sam(
    command: str, *arguments: object, log: Path, environment: dict[str, str] | None = None
) -> None:
    """Run SAM CLI with its output in a log.

    Raises:
        StackError: it failed.
    """
    folder = STATE / "sam"
    folder.mkdir(exist_ok=True)
    # It asks PyPI for news of itself, unless it remembers that it has just done so.
    (folder / "metadata.json").write_text(json.dumps({"lastVersionCheck": time.time()}))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SAM_", "PYTHON", "VIRTUAL_ENV"))
    }
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own tool, no input from elsewhere
            [ROOT / ".venv-sam/bin/sam", command, *map(str, arguments)],
            cwd=ROOT,
            env=inherited
            | {
                # `sam build` looks for python3.13 there.
                "PATH": f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_DEFAULT_REGION": REGION,
                "SAM_CLI_TELEMETRY": "0",
                "SAM_CLI_POLL_DELAY": "0.3",
                "__SAM_CLI_APP_DIR": str(folder),
            }
            | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code:
        raise StackError(f"`sam {command}` failed; its log, {log}, ends with\n{tail(log)}")


def require_free(port: int) -> None:
    """Make sure that a port can be listened on.

    Raises:
        StackError: something else listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise StackError(
                f"port {port} cannot be used ({error.strerror}): is another local stack running? "
                "Stop it, or start this one elsewhere with --port-base"
            ) from None


def free_ports(count: int) -> int:
    """Return the first of some neighbouring ports on which nothing listens now."""
    while True:
        # Below those that calls out are given: nobody takes one before it is listened on.
        base = random.randrange(20_000, 32_000)
        with contextlib.suppress(StackError):
            for port in range(base, base + count):
                require_free(port)
            return base
