"""`make deploy` and what follows it, from a fresh clone, against the local AWS."""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.local.aws import REGION, Aws, Ministack
from tests.local.machine import ROOT, STATE, free_ports, wait_until
from tests.template.transformed import load

STACK = "blip-notifier-dev"
PHONES = "+5531999998888,+1415"


@dataclass
class Clone:
    """A fresh clone of this tree, and the AWS that a person is signed in to there."""

    folder: Path
    aws: Aws

    def git(self, *arguments: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def make(self, *arguments: str, says: str = "", **more: str) -> tuple[int, str]:
        """Run make as a person does who is signed in; return its exit code and what it printed."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "MAKE", "MFLAGS", "SAM_", "VIRTUAL_ENV"))
        }
        environment = {
            "AWS_ENDPOINT_URL": self.aws.url,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        } | more
        answer = subprocess.run(  # noqa: S603
            ["make", "--no-print-directory", *arguments],  # noqa: S607
            cwd=self.folder,
            env=inherited | {name: value for name, value in environment.items() if value},
            input=says,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return answer.returncode, answer.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Copy what a commit of this tree would hold, and nothing that was made in it."""
    folder, port = tmp_path_factory.mktemp("clone"), free_ports(1)
    with Ministack(port, STATE / str(port)) as ministack:
        cloned = Clone(folder, Aws(ministack.url))
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        cloned.git("init", "--quiet")
        cloned.git("remote", "add", "origin", "git@github.com:acme/notifier.git")
        cloned.git("add", "--all")
        cloned.git("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "all")
        yield cloned


def error(printed: str) -> str:
    """Return the one line that says what is wrong; make adds none."""
    *_, line = printed.splitlines()
    # Where Return was not pressed, the question stands before it.
    _, said, problem = line.partition("error: ")
    assert said
    return problem


def parameters(aws: Aws) -> dict[str, str]:
    (stack,) = aws.stacks.describe_stacks(StackName=STACK)["Stacks"]
    return {one["ParameterKey"]: one["ParameterValue"] for one in stack["Parameters"]}


def settings(aws: Aws) -> dict[str, str]:
    """Return the environment of a function's newest version, its release among it.

    ministack transforms the template with the parameters' defaults, so it makes no version of each
    release. That AWS makes one is tested in tests/template/test_functions.py.
    """
    function = aws.stacks.describe_stack_resource(
        StackName=STACK, LogicalResourceId="SendNotificationFunction"
    )["StackResourceDetail"]["PhysicalResourceId"]
    configuration = aws.functions.get_function_configuration(FunctionName=function)
    variables: dict[str, str] = configuration["Environment"]["Variables"]
    return variables


def versions(deployed: dict[str, str]) -> set[str]:
    """Return the versions that AWS publishes for these parameters, by their logical ids."""
    return set(load(**deployed).resources("AWS::Lambda::Version"))


def post(aws: Aws, secret: str) -> int:
    """Post a receipt as BLiP does; return the status of the answer."""
    api = aws.stacks.describe_stack_resource(StackName=STACK, LogicalResourceId="HttpApi")
    host = f"{api['StackResourceDetail']['PhysicalResourceId']}.execute-api.localhost"
    receipt = {"id": "a71d3a6e-31f0-5111-8111-111111111111", "event": "received"}
    address = aws.url.removeprefix("http://")
    with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.request(
            "POST", "/receipts", json.dumps(receipt), {"Host": host, "X-Receipts-Secret": secret}
        )
        return connection.getresponse().status


@pytest.mark.parametrize(
    ("arguments", "more", "problem"),
    [
        ((), {}, "which stage?"),
        (("STAGE=prod",), {}, "there is no stage 'prod'"),
        (("STAGE=dev",), {"AWS_REGION": ""}, "no region"),
        (("STAGE=dev",), {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials"),
        (("STAGE=dev",), {}, "dev has no recipients"),
        (("STAGE=dev", "ALLOWED=+"), {}, "dev may not send to everybody"),
        (("STAGE=dev", "ALLOWED=5531"), {}, "AllowedRecipients cannot be '5531'"),
        (("STAGE=dev", "ALLOWED=+55", "ARGS=MaxAtempts=7"), {}, "no parameter MaxAtempts"),
    ],
)
def test_what_cannot_be_deployed_is_told_in_one_line(
    clone: Clone, arguments: tuple[str, ...], more: dict[str, str], problem: str
) -> None:
    code, printed = clone.make("deploy", "YES=1", *arguments, **more)

    assert code != 0
    assert problem in error(printed)
    assert "Traceback" not in printed


def test_a_stack_that_failed_stands_in_the_way(clone: Clone) -> None:
    aws = clone.aws
    aws.stacks.create_stack(
        StackName=STACK,
        TemplateBody='{"Resources": {"No": {"Type": "AWS::CloudWatch::Alarm", "Properties": {}}}}',
    )

    def failed() -> bool:
        (stack,) = aws.stacks.describe_stacks(StackName=STACK)["Stacks"]
        return bool(stack["StackStatus"] == "ROLLBACK_COMPLETE")

    wait_until(failed, "the deploy to fail")

    code, printed = clone.make("deploy", "STAGE=dev", f"ALLOWED={PHONES}", "YES=1")

    assert code != 0
    assert "is ROLLBACK_COMPLETE and can only be deleted: `make undeploy STAGE=dev`" in error(
        printed
    )
    assert clone.make("undeploy", "STAGE=dev", "YES=1")[0] == 0


def test_a_stage_is_deployed_changed_deployed_again_and_taken_down(
    clone: Clone,
) -> None:
    aws = clone.aws

    code, printed = clone.make(
        "deploy", "STAGE=dev", f"ALLOWED={PHONES}", "ALARM_EMAIL=a@example.com", "YES=1"
    )
    assert code == 0, printed
    assert "Enter ReceiptsUrl in BLiP's portal" in printed
    first = parameters(aws)
    assert first["AllowedRecipients"] == PHONES
    assert first["RunbookUrl"] == "https://github.com/acme/notifier/blob/HEAD/functions/README.md"
    assert settings(aws)["ALLOWED_RECIPIENTS"] == PHONES
    assert settings(aws)["RELEASE"] == first["Release"]
    assert settings(aws)["POWERTOOLS_SERVICE_NAME"] == STACK

    # The bucket is that of every stage: the deletion of one takes nothing of another.
    s3 = aws.client("s3")
    (bucket,) = s3.list_buckets()["Buckets"]
    artefacts = s3.list_objects_v2(Bucket=bucket["Name"])["Contents"]
    assert {one["Key"].partition("/")[0] for one in artefacts} == {STACK}

    # Another parameter: the rest stays, and a new version has it.
    code, printed = clone.make("deploy", "STAGE=dev", "ARGS=MaxAttempts=7", "YES=1")
    assert code == 0, printed
    assert "Enter ReceiptsUrl" not in printed
    second = parameters(aws)
    kept = {"AllowedRecipients", "AlarmEmail", "MaxWaitSeconds", "RunbookUrl"}
    assert {name: second[name] for name in kept} == {name: first[name] for name in kept}
    assert settings(aws)["MAX_ATTEMPTS"] == "7"
    assert settings(aws)["RELEASE"] == second["Release"]

    # The same again: a version of its own, too.
    code, printed = clone.make("deploy", "STAGE=dev", "YES=1")
    assert code == 0, printed
    third = parameters(aws)
    assert third | {"Release": ""} == second | {"Release": ""}
    assert settings(aws)["RELEASE"] == third["Release"]
    published = [versions(one) for one in (first, second, third)]
    assert len(set.union(*published)) == sum(map(len, published)) > 0
    transformed = load(**second)
    variables = transformed.properties("SendNotificationFunction")["Environment"]["Variables"]
    assert transformed.value(variables["MAX_ATTEMPTS"]) == "7"

    # Declined: nothing changes.
    code, printed = clone.make("deploy", "STAGE=dev", says="n\n")
    assert code != 0
    assert "the change set was declined" in error(printed)
    assert parameters(aws) == third
    # Nothing was saved, the settings of `sam deploy` among it.
    assert clone.git("status", "--porcelain") == ""

    # A stage's webhook: its secret is AWS's until a bot is rotated, and no deploy touches it.
    secrets = {
        name: aws.stacks.describe_stack_resource(StackName=STACK, LogicalResourceId=name)[
            "StackResourceDetail"
        ]["PhysicalResourceId"]
        for name in ("BotsSecret", "WebhookSecret")
    }
    bots = json.dumps({"clinic": {"key": "Key Y2xpbmljOmtleQ=="}, "shop": {"key": "c2hvcDprZXk="}})
    aws.secrets.put_secret_value(SecretId=secrets["BotsSecret"], SecretString=bots)
    plain = aws.secrets.get_secret_value(SecretId=secrets["WebhookSecret"])["SecretString"]
    assert re.fullmatch("[A-Za-z0-9]{40}", plain)
    assert post(aws, plain) == 200
    code, printed = clone.make("rotate-webhook", "BOT=clinic", f"STACK={STACK}")
    assert code == 0, printed
    (new,) = re.findall("X-Receipts-Secret: (.*)", printed)
    entries = aws.secrets.get_secret_value(SecretId=secrets["WebhookSecret"])["SecretString"]
    held = {bot: (one["current"], one.get("previous")) for bot, one in json.loads(entries).items()}
    assert held == {"clinic": (new, plain), "shop": (plain, None)}
    wait_until(lambda: post(aws, new) == 200, "the webhook to know the new secret", every=0.5)
    assert [post(aws, plain), post(aws, "wrong")] == [200, 401]

    code, printed = clone.make("undeploy", "STAGE=dev", says="no\n")
    assert "nothing was deleted" in error(printed)
    code, printed = clone.make("undeploy", "STAGE=dev", says=f"{STACK}\n")
    assert code == 0, printed
    for table in aws.dynamodb.list_tables()["TableNames"]:
        assert f"aws dynamodb delete-table --table-name {table}" in printed
    assert len(aws.dynamodb.list_tables()["TableNames"]) == 2
    code, printed = clone.make("undeploy", "STAGE=dev", "YES=1")
    assert "there is no stack blip-notifier-dev" in error(printed)
