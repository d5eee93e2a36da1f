"""Which stack a command reaches, and with whose credentials."""

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from functions.cli import stack as stacks
from functions.cli.__main__ import COMMANDS
from functions.cli.arguments import parse
from functions.cli.errors import CommandError
from functions.cli.stack import Stack, connect
from tests.local import aws as local_aws
from tests.local import stack as local

type Json = dict[str, Any]


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)


def named(*arguments: str) -> Stack:
    return connect(parse(COMMANDS, ["failures", *arguments]))


def test_local_stack_is_where_make_run_keeps_it() -> None:
    assert stacks.LOCAL_STACK == local.STACK
    assert stacks.LOCAL_PORT == local.DEFAULT_PORT_BASE
    assert stacks.LOCAL_REGION == local_aws.REGION


def test_without_a_name_no_account_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a real one")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a real one")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    stack = named("--port-base", "4600")
    client = stack.client("sqs")

    assert stack.name == "blip-notifier"
    assert client.meta.endpoint_url == "http://127.0.0.1:4600"
    assert client.meta.region_name == "us-east-1"
    assert client.meta.config.proxies == {}
    credentials = stack.session.get_credentials()
    assert credentials
    assert (credentials.access_key, credentials.secret_key) == ("local", "local")


def test_clients_are_made_and_names_asked_for_once() -> None:
    session = mock.Mock()
    cloudformation = session.client.return_value
    summary = {"LogicalResourceId": "Bots", "PhysicalResourceId": "bots-1"}
    pages = cloudformation.get_paginator.return_value.paginate
    pages.return_value = [{"StackResourceSummaries": [summary]}]
    detail = {"StackResourceDetail": {"PhysicalResourceId": "ledger-1"}}
    cloudformation.describe_stack_resource.return_value = detail
    stack = Stack("blip-notifier", session)

    assert stack.resources() == {"Bots": "bots-1"}
    assert [stack.physical_id("Bots"), *[stack.physical_id("Ledger")] * 2] == [
        *("bots-1", "ledger-1", "ledger-1"),
    ]

    cloudformation.describe_stack_resource.assert_called_once()
    session.client.assert_called_once()
    assert stack.client("sqs") is stack.client("sqs")


def test_deployed_stack_is_reached_with_profile_and_region(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[profile on-call]\nregion = sa-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))

    by_profile = named("--stack", "blip-notifier-dev", "--profile", "on-call")
    by_option = named(
        "--stack", "blip-notifier-dev", "--profile", "on-call", "--region", "us-east-1"
    )

    assert by_profile.session.profile_name == "on-call"
    assert by_profile.session.region_name == "sa-east-1"
    assert by_option.session.region_name == "us-east-1"
    assert by_profile.client("sqs").meta.endpoint_url == "https://sqs.sa-east-1.amazonaws.com"


def test_region_may_be_given_as_to_the_aws_cli(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "sa-east-1")

    assert named("--stack", "blip-notifier-dev").session.region_name == "sa-east-1"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], "make notification ID=order-1"),
        (["--port-base", "4600"], 'make notification ID=order-1 ARGS="--port-base 4600"'),
        (["--stack", "dev"], "make notification ID=order-1 STACK=dev"),
        (
            ["--stack", "dev", "--region", "sa-east-1"],
            'make notification ID=order-1 STACK=dev ARGS="--region sa-east-1"',
        ),
    ],
)
def test_next_command_names_the_same_stack(arguments: list[str], command: str) -> None:
    assert named(*arguments).command("notification", "ID=order-1") == command


@dataclass
class MadeUpAws:
    """Stands in for CloudFormation and Lambda."""

    answer: Json
    invoked: list[Json] = field(default_factory=list)

    def describe_stack_resource(self, **about: str) -> Json:
        assert about["StackName"] == "blip-notifier"
        return {
            "StackResourceDetail": {"PhysicalResourceId": f"made-up-{about['LogicalResourceId']}"}
        }

    def invoke(self, **asked: Any) -> Json:
        self.invoked.append(asked)
        return {**self.answer, "Payload": io.StringIO(json.dumps(self.answer["Payload"]))}


def invoked(answer: Json, monkeypatch: pytest.MonkeyPatch) -> tuple[Json, Json]:
    aws = MadeUpAws(answer)
    monkeypatch.setattr(Stack, "client", lambda *_: aws)
    told = named().invoke("GetNotificationFunction", {"a": 1})
    return told, aws.invoked[0]


def test_released_version_of_a_function_is_invoked(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked = invoked({"Payload": {"statusCode": 200}}, monkeypatch)

    assert answer == {"statusCode": 200}
    assert asked == {
        "FunctionName": "made-up-GetNotificationFunction",
        "Qualifier": "live",
        "Payload": '{"a": 1}',
    }


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (
            {
                "Payload": {"errorType": "Timeout", "errorMessage": "50 s"},
                "FunctionError": "Unhandled",
            },
            "^GetNotificationFunction failed: Timeout: 50 s; its log says more$",
        ),
        ({"Payload": {"error": "to: no number"}}, "^to: no number$"),
    ],
)
def test_failure_of_a_function_is_one_line(
    answer: Json, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CommandError, match=problem):
        invoked(answer, monkeypatch)
