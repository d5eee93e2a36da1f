"""`make deploy` and `make undeploy`, against the local AWS."""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.local.stack import REGION, ROOT, STATE, Aws, Ministack, free_ports, wait_until

STACK = "blip-notifier-dev"
PHONES = "+5531999998888,+1415"


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    port = free_ports(1)
    with Ministack(port, STATE / str(port)) as ministack:
        yield Aws(ministack.url)


def make(aws: Aws, *arguments: str, says: str = "", **more: str) -> tuple[int, str]:
    """Run make as a person does who is signed in; return its exit code and what it printed."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "MAKE", "MFLAGS", "SAM_"))
    }
    environment = {
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    } | more
    answer = subprocess.run(  # noqa: S603
        ["make", "--no-print-directory", *arguments],  # noqa: S607
        cwd=ROOT,
        env=inherited | {name: value for name, value in environment.items() if value},
        input=says,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return answer.returncode, answer.stdout


def error(printed: str) -> str:
    """Return the one line that says what is wrong; make adds one of its own."""
    *_, line, _ = printed.splitlines()
    # A question stands before it where nobody has pressed Return.
    _, said, problem = line.partition("error: ")
    assert said
    return problem


def parameters(aws: Aws) -> dict[str, str]:
    (stack,) = aws.stacks.describe_stacks(StackName=STACK)["Stacks"]
    return {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}


def settings(aws: Aws) -> dict[str, str]:
    """Return what the newest version of a function is told, its release among it.

    ministack transforms the template with the parameters' defaults, so it makes no version of each
    release. That AWS makes one is tested in tests/template/test_functions.py.
    """
    function = aws.stacks.describe_stack_resource(
        StackName=STACK, LogicalResourceId="SendNotificationFunction"
    )["StackResourceDetail"]["PhysicalResourceId"]
    configuration = aws.functions.get_function_configuration(FunctionName=function)
    variables: dict[str, str] = configuration["Environment"]["Variables"]
    return variables


def tree() -> str:
    return subprocess.run(
        ["git", "status", "--porcelain"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("arguments", "more", "problem"),
    [
        ((), {}, "which stage?"),
        (("STAGE=prod",), {}, "there is no stage 'prod'"),
        (("STAGE=dev",), {"AWS_REGION": ""}, "no region"),
        (("STAGE=dev",), {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials"),
        (("STAGE=dev",), {}, "dev has nobody to send to"),
        (("STAGE=dev", "ALLOWED=+"), {}, "dev may not send to everybody"),
        (("STAGE=dev", "ALLOWED=5531"), {}, "AllowedRecipients cannot be '5531'"),
        (("STAGE=dev", "ALLOWED=+55", "ARGS=MaxAtempts=7"), {}, "no parameter MaxAtempts"),
    ],
)
def test_what_cannot_be_deployed_is_told_in_one_line(
    aws: Aws, arguments: tuple[str, ...], more: dict[str, str], problem: str
) -> None:
    code, printed = make(aws, "deploy", "YES=1", *arguments, **more)

    assert code != 0
    assert problem in error(printed)
    assert "Traceback" not in printed


def test_a_stack_that_failed_stands_in_the_way(aws: Aws) -> None:
    aws.stacks.create_stack(
        StackName=STACK,
        TemplateBody='{"Resources": {"No": {"Type": "AWS::CloudWatch::Alarm", "Properties": {}}}}',
    )

    def failed() -> bool:
        (stack,) = aws.stacks.describe_stacks(StackName=STACK)["Stacks"]
        return bool(stack["StackStatus"] == "ROLLBACK_COMPLETE")

    wait_until(failed, "the deploy to fail")

    code, printed = make(aws, "deploy", "STAGE=dev", f"ALLOWED={PHONES}", "YES=1")

    assert code != 0
    assert "is ROLLBACK_COMPLETE and can only be deleted: `make undeploy STAGE=dev`" in error(
        printed
    )
    assert make(aws, "undeploy", "STAGE=dev", "YES=1")[0] == 0


def test_a_stage_is_deployed_changed_deployed_again_and_taken_down(aws: Aws) -> None:
    before = tree()

    code, printed = make(
        aws, "deploy", "STAGE=dev", f"ALLOWED={PHONES}", "ALARM_EMAIL=a@example.com", "YES=1"
    )
    assert code == 0, printed
    assert "Enter ReceiptsUrl in BLiP's portal" in printed
    first = parameters(aws)
    assert first["AllowedRecipients"] == PHONES
    assert settings(aws)["ALLOWED_RECIPIENTS"] == PHONES
    assert settings(aws)["RELEASE"] == first["Release"]
    assert settings(aws)["POWERTOOLS_SERVICE_NAME"] == STACK

    # Another parameter: the rest stays, and a new version has it.
    code, printed = make(aws, "deploy", "STAGE=dev", "ARGS=MaxAttempts=7", "YES=1")
    assert code == 0, printed
    assert "Enter ReceiptsUrl" not in printed
    second = parameters(aws)
    kept = {"AllowedRecipients", "AlarmEmail", "MaxWaitSeconds"}
    assert {name: second[name] for name in kept} == {name: first[name] for name in kept}
    assert settings(aws)["MAX_ATTEMPTS"] == "7"
    assert settings(aws)["RELEASE"] == second["Release"]

    # The same again: a version of its own, too.
    code, printed = make(aws, "deploy", "STAGE=dev", "YES=1")
    assert code == 0, printed
    third = parameters(aws)
    assert third | {"Release": ""} == second | {"Release": ""}
    assert settings(aws)["RELEASE"] == third["Release"]
    assert len({one["Release"] for one in (first, second, third)}) == 3

    # Declined: nothing changes.
    code, printed = make(aws, "deploy", "STAGE=dev", says="n\n")
    assert code != 0
    assert "the change set was declined" in error(printed)
    assert parameters(aws) == third
    assert tree() == before

    code, printed = make(aws, "undeploy", "STAGE=dev", says="no\n")
    assert "nothing was deleted" in error(printed)
    code, printed = make(aws, "undeploy", "STAGE=dev", says=f"{STACK}\n")
    assert code == 0, printed
    for table in aws.dynamodb.list_tables()["TableNames"]:
        assert f"aws dynamodb delete-table --table-name {table}" in printed
    assert len(aws.dynamodb.list_tables()["TableNames"]) == 2
    code, printed = make(aws, "undeploy", "STAGE=dev", "YES=1")
    assert "there is no stack blip-notifier-dev" in error(printed)
