"""The product on this machine: a local AWS, the real template deployed into it, and a BLiP.

Nothing here is part of what is shipped, and nothing that is shipped knows about it. What the local
AWS does wrong or not at all is worked around in this file, in one place each with its reason.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from notifier.domain.bots import InvalidBot, parse_bots
from tests.local.aws import REGION, Aws, Ministack
from tests.local.blip import Bot, Simulator
from tests.local.build import built, machine_architecture, run_sam
from tests.local.machine import HOST, STATE, StackError, require_free
from tests.local.metrics import Metrics

STACK = "blip-notifier"
DEFAULT_PORT_BASE = 4566
# Which bots the simulator has: the names that requests use, and its own names for them.
SIMULATED_BOTS = {"default": "simulated", "clinic": "clinic"}
NAMESPACE = "c8e7b1d4_5f2a_4e0b_9a3c_6d1f0e2b7a95"

type Step = Callable[[str], AbstractContextManager[None]]


class LocalStack:
    """The product, deployed and ready for requests.

    Attributes:
        aws: clients for where it is deployed.
        home: this stack's folder, with the logs.
        simulator: its BLiP; None where another one was named.
        bots: the names that requests can use.
        name: CloudFormation's for it.
        template: what was deployed.
        resources: physical ids, by logical id.
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
        step: Step = lambda _: contextlib.nullcontext(),
    ) -> None:
        """Make it.

        Args:
            port_base: where the local AWS listens; the simulator listens one above.
            blip: address and key of another BLiP instead of the simulator.
            aws_url: another AWS endpoint instead of the local AWS.
            parameters: of the template, other than the defaults.
            functions_call: what the functions take for AWS instead of the local one.
            name: CloudFormation's for it.
            step: entered for as long as each step of the start takes, with what it makes.
        """
        self.name = name
        self.home = STATE / str(port_base)
        self._port_base = port_base
        self._blip = blip
        self._aws_url = aws_url
        self._functions_call = functions_call
        self._parameters = {
            "Architecture": machine_architecture(),
            "AllowedRecipients": "+",
        } | dict(parameters or {})
        self._step = step
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
        starting = self._start_aws()
        self.home.mkdir(parents=True, exist_ok=True)
        with self._built() as template:
            self.aws = starting.result()
            with self._step("The template, deployed"):
                self._deploy(template)
                if self.simulator:
                    self._send_receipts_here(self.simulator)
                self._finish_tables()
                self._finish_mappings()
                self.aws.secrets.put_secret_value(
                    SecretId=self.resources["BotsSecret"], SecretString=secret
                )
        if self.ministack:
            self._cleanup.enter_context(self.metrics(self.ministack.log))

    def _start_aws(self) -> Future[Aws]:
        """Start the local AWS, which is not needed before the template is built."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="aws")
        self._cleanup.callback(pool.shutdown)
        if self._aws_url is not None:
            return pool.submit(Aws, self._aws_url)
        self.ministack = ministack = Ministack(self._port_base, self.home, self._functions_call)
        # In this thread, so that an interruption at any moment finds it here, and ends it.
        self._cleanup.callback(ministack.stop)
        ministack.start()

        def ready() -> Aws:
            with self._step(f"Local AWS: {ministack.url}"):
                ministack.wait()
                return Aws(ministack.url)

        return pool.submit(ready)

    def deploy(self, **parameters: str) -> None:
        """Deploy the template once more, with other values for some parameters."""
        self._parameters |= parameters
        with self._built() as template:
            self._deploy(template)

    def _built(self) -> AbstractContextManager[Path]:
        return built(self._parameters["Architecture"], self.home, self._step)

    def sync_templates(self) -> dict[str, int]:
        """Return how many templates each bot has that answered, after asking BLiP for all of them.

        The schedule does so every quarter of an hour, and requests are published at once.
        """
        answer = self.aws.functions.invoke(FunctionName=self.resources["SyncTemplatesFunction"])
        synced: dict[str, int] = json.load(answer["Payload"]).get("templates", {})
        return synced

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
        with self._step(f"BLiP simulator: http://{HOST}:{port}"):
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
        self.template = yaml.safe_load(template.read_text())
        self._check_parameters(self.template["Parameters"])
        run_sam(
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
        self._find_resources()

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

    def _finish_tables(self) -> None:
        """Switch on the tables' time to live, which ministack's CloudFormation leaves out."""
        for name, resource in self.template["Resources"].items():
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
