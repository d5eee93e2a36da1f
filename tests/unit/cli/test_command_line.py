"""The command line as a whole: usage in the words that were typed, and errors with a way out."""

import re

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ProfileNotFound,
    SSOTokenLoadError,
)

from functions.cli import ROOT
from functions.cli.__main__ import COMMANDS
from tests.unit.cli.conftest import MadeUpStack, Run


@pytest.fixture
def by_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLED_BY", "make")


def test_every_command_is_a_target_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    for command in COMMANDS:
        assert f"\n{command}: " in makefile


@pytest.mark.usefixtures("by_make")
def test_every_variable_of_the_usage_is_one_that_make_takes(run: Run) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as ended:
            run(name, "--help")
        assert ended.value.code == 0
        for variable in re.findall("([A-Z_]+)=", command.variables):
            assert f"$({variable})" in makefile, name


@pytest.mark.parametrize("name", [name for name in COMMANDS if not name.endswith("deploy")])
def test_commands_on_a_stack_print_json(
    name: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(name, "--help")
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem", "usage"),
    [
        (
            ["publish"],
            "FILE is missing",
            "make publish FILE=my-request.json [STACK=name] [ARGS=--help]",
        ),
        (
            ["notification"],
            "ID is missing",
            "make notification ID=order-981 [BOT=name] [STACK=name]",
        ),
        (["pause"], "BOT is missing", "make pause BOT=name [STACK=name]"),
        (["failures", "--ech"], "unrecognized arguments: --ech", "make failures [STACK=name]"),
    ],
)
@pytest.mark.usefixtures("by_make")
def test_usage_of_make_is_in_the_words_of_make(
    arguments: list[str], problem: str, usage: str, run: Run
) -> None:
    code, shown = run(*arguments)

    assert code == 2
    assert shown.startswith(f"error: {problem} usage: {usage}")
    assert "python" not in shown


def test_usage_of_python_is_in_the_words_of_python(run: Run) -> None:
    code, shown = run("publish")

    assert code == 2
    assert shown.startswith("error: FILE is missing usage: python -m functions.cli publish ")


def refused(code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "DescribeStackResource")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NoRegionError(), "error: no region: set AWS_REGION, or name it with --region"),
        (
            NoCredentialsError(),
            "error: no credentials: sign in with the AWS CLI, or set AWS_PROFILE",
        ),
        (SSOTokenLoadError(error_msg="x"), "error: the sign-in has expired: `aws sso login`"),
        (ProfileNotFound(profile="x"), "`aws configure list-profiles` names those that are"),
        (
            EndpointConnectionError(endpoint_url="http://127.0.0.1:4566/"),
            "error: the local stack does not answer at http://127.0.0.1:4566: start it with"
            " `make run`, or name a deployed one with --stack",
        ),
        (
            refused("ExpiredToken", "The security token has expired"),
            "error: AWS refuses these credentials (ExpiredToken): sign in again with the AWS CLI",
        ),
        (
            refused("ValidationError", "Stack 'blip-notifier' does not exist"),
            "error: http://127.0.0.1:4566 has no stack blip-notifier yet: wait until `make run`",
        ),
        (refused("AccessDenied", "no sqs:SendMessage"), "no sqs:SendMessage"),
    ],
)
def test_error_of_aws_is_one_line_with_the_way_out(
    error: BotoCoreError | ClientError,
    sentence: str,
    stack: MadeUpStack,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(stack, "invoke", fails, raising=False)

    code, shown = run("notification", "order-1")

    assert code == 1
    assert sentence in shown


def test_interrupted_command_says_so(
    stack: MadeUpStack, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stack, "invoke", interrupted)

    assert run("notification", "order-1") == (130, " stopped ")
