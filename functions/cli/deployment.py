"""`deploy` and `undeploy`: a stage, as `functions/stages/STAGE.toml` describes it.

Every deploy has a release of its own, without which no function would see its new code and
parameters. Nothing is saved.
"""

import argparse
import os
import re
import subprocess
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import boto3
import yaml
from botocore.exceptions import ClientError

from functions.cli import ROOT, output
from functions.cli.errors import CommandError

STAGES = ROOT / "functions/stages"
TEMPLATE = ROOT / "template.yaml"
BUILT = ROOT / ".aws-sam/build/template.yaml"
SAM = ROOT / ".venv-sam/bin/sam"
EVERYBODY = "+"
# States of a stack that has never been there.
NEW = {"REVIEW_IN_PROGRESS", "DELETE_COMPLETE"}
# States of a stack whose first deploy failed, or whose deletion did: it can only be deleted.
FAILED = {"CREATE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "DELETE_FAILED"}


class _Template(yaml.SafeLoader):
    """Reads a template, and leaves out what CloudFormation computes."""


_Template.add_multi_constructor("!", lambda *_: None)


@dataclass(frozen=True)
class Stage:
    """What is deployed under one name.

    Attributes:
        name: as `STAGE=` calls it.
        stack: CloudFormation's name for it.
        region: where it is; None for the profile's.
        parameters: values for the template's.
    """

    name: str
    stack: str
    region: str | None
    parameters: Mapping[str, str]


def read_stage(name: str) -> Stage:
    """Read the file of a stage.

    Raises:
        CommandError: there is none, or it is no such file.
    """
    known = sorted(file.stem for file in STAGES.glob("*.toml"))
    if name not in known:
        asked = f"there is no stage {name!r}: name" if name else "which stage? Name"
        raise CommandError(f"{asked} one with STAGE=, of {', '.join(known)}")
    content = tomllib.loads((STAGES / f"{name}.toml").read_text(encoding="utf-8"))
    unknown = content.keys() - {"stack", "region", "parameters"}
    if "stack" not in content or unknown:
        raise CommandError(f"stages/{name}.toml needs `stack`, and knows no {sorted(unknown)}")
    parameters = {key: str(value) for key, value in content.get("parameters", {}).items()}
    return Stage(name, content["stack"], content.get("region"), parameters)


def connect(region: str | None) -> boto3.Session:
    """Return a session that can reach an account.

    Raises:
        CommandError: no region is set.
        NoCredentialsError, ClientError: no credentials are set, or AWS refuses them.
    """
    # The AWS CLI reads this variable, boto3 does not.
    session = boto3.Session(region_name=region or os.environ.get("AWS_REGION"))
    if not session.region_name:
        raise CommandError("no region: name one with REGION=, as in REGION=sa-east-1")
    session.client("sts").get_caller_identity()
    return session


def describe(session: boto3.Session, stage: Stage) -> dict[str, Any] | None:
    """Return CloudFormation's description of a stage's stack; None if there is none.

    Raises:
        CommandError: it is being changed.
    """
    try:
        (stack,) = session.client("cloudformation").describe_stacks(StackName=stage.stack)["Stacks"]
    except ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    status = stack["StackStatus"]
    if status in NEW:
        return None
    if status.endswith("_IN_PROGRESS"):
        raise CommandError(f"{stage.stack} is being changed ({status}): wait until that ends")
    return dict(stack)


def parameters_in_effect(
    template: Mapping[str, Mapping[str, Any]],
    stage: Stage,
    given: Mapping[str, str],
    present: Mapping[str, str],
) -> list[tuple[str, str, str]]:
    """Return name, value and origin of every parameter of the template.

    Args:
        template: the template's parameters.
        stage: what its file says.
        given: what the command line says, which goes first.
        present: what the stack has.

    Raises:
        CommandError: a name or a value cannot be, or no recipients are named.
    """
    rows = []
    for name in {**given, **stage.parameters}:
        if name not in template:
            raise CommandError(f"the template has no parameter {name}: see functions/README.md")
    for name, definition in template.items():
        if name in given:
            rows.append((name, given[name], "given now"))
        elif name in stage.parameters:
            rows.append((name, stage.parameters[name], f"stages/{stage.name}.toml"))
        elif name in present:
            rows.append((name, present[name], "as it was"))
        elif "Default" in definition:
            rows.append((name, str(definition["Default"]), "default"))
        else:
            rows.append((name, "", "missing"))
    _check(template, stage, rows)
    return rows


def _check(
    template: Mapping[str, Mapping[str, Any]], stage: Stage, rows: list[tuple[str, str, str]]
) -> None:
    recipients = {name: value for name, value, _ in rows}["AllowedRecipients"]
    if not recipients:
        raise CommandError(
            f"{stage.name} has no recipients: name its test phones, ALLOWED=+5531999998888"
        )
    if recipients == EVERYBODY != stage.parameters.get("AllowedRecipients"):
        raise CommandError(
            f"{stage.name} may not send to everybody: name its test phones, ALLOWED=+5531999998888"
        )
    for name, value, origin in rows:
        pattern = template[name].get("AllowedPattern", "")
        if origin != "as it was" and not re.fullmatch(pattern or ".*", value):
            raise CommandError(f"{name} cannot be {value!r}: {template[name]['Description']}")


def run_deploy(options: argparse.Namespace) -> int:
    """Build and deploy a stage."""
    stage = read_stage(options.stage)
    session = connect(options.region or stage.region)
    stack = describe(session, stage)
    if stack and stack["StackStatus"] in FAILED:
        raise CommandError(
            f"{stage.stack} is {stack['StackStatus']} and can only be deleted:"
            f" `make undeploy STAGE={stage.name}`, then deploy again"
        )
    if stack and stack["StackStatus"] == "UPDATE_ROLLBACK_FAILED":
        raise CommandError(
            f"{stage.stack} is UPDATE_ROLLBACK_FAILED: `aws cloudformation continue-update-rollback"
            f" --stack-name {stage.stack}`, then deploy again"
        )
    release = str(int(time.time()))
    given = _given(options) | {"Release": release}
    template = yaml.load(TEMPLATE.read_text(encoding="utf-8"), Loader=_Template)["Parameters"]  # noqa: S506 - a safe one
    present = {
        one["ParameterKey"]: one["ParameterValue"] for one in (stack or {}).get("Parameters", [])
    }
    known = {**present, **stage.parameters, **given}
    if "://" not in known.get("RunbookUrl", "") and (url := runbook_url(_remote())):
        given["RunbookUrl"] = url
    rows = parameters_in_effect(template, stage, given, present)
    output.facts({name: f"{value or '-'} ({origin})" for name, value, origin in rows})
    output.say()
    output.say(f"{stage.stack} in {session.region_name}, release {release}")
    output.say()
    _sam("build")
    told = {name: value for name, value, _ in rows if name in given or name in stage.parameters}
    _sam(
        "deploy",
        *("--template-file", BUILT, "--stack-name", stage.stack),
        *("--region", session.region_name, "--resolve-s3", "--capabilities", "CAPABILITY_IAM"),
        # All stages share the bucket. The deletion of one would take what another rolls back to.
        *("--s3-prefix", stage.stack),
        *("--tags", "project=blip-notifier", f"stage={stage.name}"),
        "--no-confirm-changeset" if options.yes else "--confirm-changeset",
        "--no-fail-on-empty-changeset",
        *("--parameter-overrides", *(f"{name}={value}" for name, value in told.items())),
    )
    deployed = describe(session, stage)
    values = {one["ParameterKey"]: one["ParameterValue"] for one in (deployed or {})["Parameters"]}
    if values.get("Release") != release:
        raise CommandError(f"{stage.stack} was not deployed: the change set was declined")
    for step in _next_steps(session, stage, values, first=stack is None):
        output.say()
        output.say(f"- {step}")
    return 0


def runbook_url(remote: str) -> str | None:
    """Return where a browser finds the runbook, for the links in the alarms' texts.

    GitHub has it there, and GitLab redirects from there. `HEAD` is the default branch, so that not
    every deploy changes every alarm. None if the remote is no repository on a host.
    """
    found = re.fullmatch(
        r"(?:https?://|ssh://|)(?:[^@/]+@)?([\w.-]+\.[\w-]+)(?::\d+/|[:/])([\w./~-]+?)(?:\.git)?/?",
        remote,
    )
    return f"https://{found[1]}/{found[2]}/blob/HEAD/functions/README.md" if found else None


def _remote() -> str:
    """Return the address of this repository's `origin`; empty without one, or without git."""
    try:
        git = subprocess.run(
            ["git", "remote", "get-url", "origin"],  # noqa: S607 - as on every machine
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return git.stdout.strip()


def _given(options: argparse.Namespace) -> dict[str, str]:
    given = {}
    for text in options.parameters:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise CommandError(f"{text!r} is no parameter: write Name=value")
        given[name] = value
    if options.allowed:
        given["AllowedRecipients"] = options.allowed
    if options.alarm_email:
        given["AlarmEmail"] = options.alarm_email
    return given


def _next_steps(
    session: boto3.Session, stage: Stage, values: Mapping[str, str], *, first: bool
) -> list[str]:
    """Return what is left to a person after a deploy."""
    steps = []
    if first:
        steps.append(
            "Put the bots and their keys into the secret BotsSecretArn, and try them:"
            f" make check-bot BOT=default STACK={stage.stack}"
        )
        steps.append(
            "Enter ReceiptsUrl in BLiP's portal, with the header that this prints for the bot:"
            f" make rotate-webhook BOT=default STACK={stage.stack}"
        )
    if values.get("AlarmEmail"):
        topic = session.client("cloudformation").describe_stack_resource(
            StackName=stage.stack, LogicalResourceId="AlarmTopic"
        )["StackResourceDetail"]["PhysicalResourceId"]
        found = session.client("sns").list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
        if not all(one["SubscriptionArn"].startswith("arn:") for one in found):
            steps.append(
                f"{values['AlarmEmail']} gets no alarm yet: confirm the subscription in the mail"
                " that AWS has sent there."
            )
    elif not values.get("AlarmTopicArn"):
        steps.append("No address gets the alarms: deploy with ALARM_EMAIL=, or AlarmTopicArn=.")
    return steps


def run_undeploy(options: argparse.Namespace) -> int:
    """Delete the stack of a stage, but for its tables."""
    stage = read_stage(options.stage)
    session = connect(options.region or stage.region)
    stack = describe(session, stage)
    if stack is None:
        raise CommandError(f"there is no stack {stage.stack} in {session.region_name}")
    tables = [
        one["PhysicalResourceId"]
        for page in session.client("cloudformation")
        .get_paginator("list_stack_resources")
        .paginate(StackName=stage.stack)
        for one in page["StackResourceSummaries"]
        if one["ResourceType"] == "AWS::DynamoDB::Table"
        and one["ResourceStatus"] != "DELETE_COMPLETE"
    ]
    output.say(
        f"{stage.stack} in {session.region_name} goes, with its queues, secrets and logs and all"
        " that is in them: look through the dead letters first."
    )
    if tables:
        output.say("The tables stay, because nothing else knows what was sent. To delete them:")
        for table in tables:
            output.say_exactly(f"  aws dynamodb delete-table --table-name {table}")
    if not options.yes and input(f"Type {stage.stack} to delete it: ") != stage.stack:
        raise CommandError("nothing was deleted")
    _sam("delete", "--stack-name", stage.stack, "--region", session.region_name, "--no-prompts")
    return 0


def _sam(command: str, *arguments: object) -> None:
    """Run SAM CLI, where its output is seen and its questions can be answered."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SAM_", "PYTHON", "VIRTUAL_ENV"))
    } | {"SAM_CLI_TELEMETRY": "0"}
    try:
        sam = subprocess.run(  # noqa: S603 - our own tool
            [SAM, command, *map(str, arguments)], cwd=ROOT, env=environment, check=False
        )
    except KeyboardInterrupt:
        if command != "build":
            output.say()
            output.say(
                "What CloudFormation has begun goes on: the stack's events show it. Repeat the"
                " command when it has ended."
            )
        raise
    if sam.returncode:
        raise CommandError(f"`sam {command}` failed: see above")


def undeploy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `undeploy` takes."""
    add = parser.add_argument
    add("--stage", default="", help="one of functions/stages/")
    add("--region", help="instead of the stage's, or the profile's")
    add("--yes", action="store_true", help="ask nothing")


def deploy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `deploy` takes."""
    undeploy_arguments(parser)
    add = parser.add_argument
    add("--allowed", help="numbers, or how they start, to send to")
    add("--alarm-email", help="where the alarms write to")
    add("parameters", nargs="*", metavar="NAME=VALUE")
