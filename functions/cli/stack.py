"""The stack that a command works on: the local one of `make run`, or a deployed one."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from threading import Lock
from typing import Any, Protocol

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from functions.cli import words
from functions.cli.errors import CommandError, explain
from notifier.use_cases.redrive_failures.redrive import MAX_THREADS

# Longer than any function's time limit: boto3 would invoke it once more.
INVOKE_SECONDS = 130
# Where `make run` keeps the local stack.
LOCAL_STACK = "blip-notifier"
LOCAL_PORT = 4566
LOCAL_REGION = "us-east-1"

type Json = dict[str, Any]


class Resources(Protocol):
    """A stack's resources, by their logical ids."""

    def client(self, service: str) -> Any:
        """Return boto3's client of a service, where the stack is."""

    def physical_id(self, logical_id: str) -> str:
        """Return AWS's name of a resource."""


class Addressed(Resources, Protocol):
    """A stack's resources, and how the stack is named in a next command."""

    def command(self, target: str, variables: str = "", arguments: Sequence[str] = ()) -> str:
        """Return a command of `make` on this stack, to be typed next."""


@dataclass(frozen=True)
class Stack:
    """A stack whose functions can be invoked, and whose resources can be reached.

    Its clients and its resources' names are kept: a client takes longer to make than most calls.
    It can be used by several threads.

    Attributes:
        name: CloudFormation's.
        session: boto3's, for its account and region.
        endpoint: the local AWS's; None for AWS itself.
        typed: what names it in the next command: a variable of `make`, and further options.
    """

    name: str
    session: boto3.Session
    endpoint: str | None = None
    typed: tuple[str, tuple[str, ...]] = ("", ())
    _clients: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _physical_ids: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    # boto3's clients may be shared by threads, its sessions may not.
    _making_client: Any = field(default_factory=Lock, init=False, repr=False)

    def client(self, service: str) -> Any:
        """Return boto3's client of a service, where the stack is."""
        with self._making_client:
            if service not in self._clients:
                config = Config(
                    max_pool_connections=MAX_THREADS,
                    read_timeout=INVOKE_SECONDS,
                    retries={"mode": "standard"},
                )
                self._clients[service] = self.session.client(  # type: ignore[call-overload] # any
                    service, endpoint_url=self.endpoint, config=config
                )
            return self._clients[service]

    def physical_id(self, logical_id: str) -> str:
        """Return AWS's name of a resource."""
        if logical_id not in self._physical_ids:
            answer = self.client("cloudformation").describe_stack_resource(
                StackName=self.name, LogicalResourceId=logical_id
            )
            self._physical_ids[logical_id] = answer["StackResourceDetail"]["PhysicalResourceId"]
        return self._physical_ids[logical_id]

    def resources(self) -> dict[str, str]:
        """Return AWS's names of all resources, by their logical ids."""
        pages = self.client("cloudformation").get_paginator("list_stack_resources")
        found = {
            resource["LogicalResourceId"]: resource.get("PhysicalResourceId", "")
            for page in pages.paginate(StackName=self.name)
            for resource in page["StackResourceSummaries"]
        }
        self._physical_ids.update(found)
        return found

    def invoke(self, function: str, event: Json) -> Json:
        """Invoke the released version of a function, by its logical id; return its answer.

        Raises:
            CommandError: it failed, or did not understand the event.
        """
        response = self.client("lambda").invoke(
            FunctionName=self.physical_id(function), Qualifier="live", Payload=json.dumps(event)
        )
        answer: Json = json.load(response["Payload"])
        if "FunctionError" in response:
            raise CommandError(
                f"{function} failed: {answer.get('errorType')}: {answer.get('errorMessage')};"
                " its log says more"
            )
        if "error" in answer:
            raise CommandError(answer["error"])
        return answer

    def command(self, target: str, variables: str = "", arguments: Sequence[str] = ()) -> str:
        """Return a command of `make` on this stack, to be typed next."""
        name, options = self.typed
        return words.make(target, f"{variables} {name}".strip(), [*arguments, *options])


def connect(options: argparse.Namespace) -> Stack:
    """Return the stack that the command line names."""
    if options.stack:
        # The AWS CLI reads this variable, boto3 does not.
        region = options.region or os.environ.get("AWS_REGION")
        session = boto3.Session(profile_name=options.profile, region_name=region)
        typed = [
            word
            for name in ("profile", "region")
            if (value := getattr(options, name))
            for word in (f"--{name}", value)
        ]
        return Stack(options.stack, session, typed=(f"STACK={options.stack}", tuple(typed)))
    moved = () if options.port_base == LOCAL_PORT else ("--port-base", str(options.port_base))
    endpoint = f"http://127.0.0.1:{options.port_base}"
    return Stack(LOCAL_STACK, _local_session(), endpoint, typed=("", moved))


def on_stack(
    run: Callable[[Stack, argparse.Namespace], int],
) -> Callable[[argparse.Namespace], int]:
    """Return a command on the stack that its command line names.

    An error of AWS becomes a sentence about that stack.
    """

    @wraps(run)
    def run_on_stack(options: argparse.Namespace) -> int:
        stack = connect(options)
        try:
            return run(stack, options)
        except (BotoCoreError, ClientError) as error:
            raise CommandError(explain(error, stack)) from error

    return run_on_stack


def _local_session() -> boto3.Session:
    """Return a session that can reach no account, and asks no proxy for 127.0.0.1.

    Its credentials are made up, and it reads no profile of this machine.
    """
    session = botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    session.set_credentials("local", "local")
    session.set_default_client_config(Config(proxies={}))
    return boto3.Session(botocore_session=session, region_name=LOCAL_REGION)


def stack_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a stack."""
    add = parser.add_argument_group("which stack").add_argument
    add("--stack", metavar="NAME", help="a deployed stack; without it the local one of `make run`")
    add("--profile", help="the AWS profile for it")
    add("--region", help="the AWS region that it is in")
    add(
        "--port-base",
        metavar="N",
        type=int,
        default=LOCAL_PORT,
        help="where the local stack listens (default %(default)s)",
    )
