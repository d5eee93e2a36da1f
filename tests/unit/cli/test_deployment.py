"""What a deploy takes for its parameters, and what it refuses."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from functions.cli import deployment
from functions.cli.deployment import Stage, parameters_in_effect, read_stage
from functions.cli.errors import CommandError

TEMPLATE: dict[str, dict[str, Any]] = {
    "AllowedRecipients": {"Description": "Numbers.", "AllowedPattern": r"\+\d*(,\+\d+)*"},
    "MaxAttempts": {"Description": "How often.", "Default": 20},
    "Release": {"Description": "A name.", "Default": "dev", "AllowedPattern": "[a-z0-9]{1,10}"},
}
DEV = Stage("dev", "blip-notifier-dev", None, {})


def effective(
    stage: Stage = DEV, given: dict[str, str] | None = None, present: dict[str, str] | None = None
) -> dict[str, tuple[str, str]]:
    rows = parameters_in_effect(TEMPLATE, stage, given or {}, present or {})
    return {name: (value, origin) for name, value, origin in rows}


def test_the_command_goes_before_the_file_the_file_before_the_stack() -> None:
    stage = Stage("dev", "s", None, {"MaxAttempts": "5", "AllowedRecipients": "+1"})

    found = effective(
        stage, {"AllowedRecipients": "+2"}, {"MaxAttempts": "9", "AllowedRecipients": "+3"}
    )

    assert found["AllowedRecipients"] == ("+2", "given now")
    assert found["MaxAttempts"] == ("5", "stages/dev.toml")
    assert found["Release"] == ("dev", "default")


def test_what_nobody_names_stays_as_the_stack_has_it() -> None:
    found = effective(present={"MaxAttempts": "9", "AllowedRecipients": "+3"})

    assert found["MaxAttempts"] == ("9", "as it was")
    assert found["AllowedRecipients"] == ("+3", "as it was")


def test_a_stage_without_a_list_is_refused() -> None:
    with pytest.raises(CommandError, match=r"dev has no recipients.*ALLOWED="):
        effective()


@pytest.mark.parametrize("where", ["given", "present"])
def test_everybody_is_said_by_the_file_of_a_stage_only(where: str) -> None:
    everybody = {"AllowedRecipients": "+"}

    with pytest.raises(CommandError, match="dev may not send to everybody"):
        effective(**{where: everybody})  # type: ignore[arg-type] # both take the same

    production = Stage("production", "s", None, everybody)
    assert effective(production)["AllowedRecipients"][0] == "+"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"MaxAtempts": "7"}, "no parameter MaxAtempts"),
        ({"AllowedRecipients": "5531"}, "AllowedRecipients cannot be '5531'"),
        ({"AllowedRecipients": "+55", "Release": "much-too-long"}, "Release cannot be"),
    ],
)
def test_what_cloudformation_would_refuse_is_refused_at_once(
    given: dict[str, str], problem: str
) -> None:
    with pytest.raises(CommandError, match=problem):
        effective(given=given)


def test_only_production_sends_to_everybody() -> None:
    stages = {file.stem: read_stage(file.stem) for file in deployment.STAGES.glob("*.toml")}

    assert stages.keys() == {"dev", "production"}
    assert [
        name for name, stage in stages.items() if stage.parameters.get("AllowedRecipients") == "+"
    ] == ["production"]
    assert len({stage.stack for stage in stages.values()}) == len(stages)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("", "which stage.*of dev, production"), ("prod", "no stage 'prod'.*of dev, production")],
)
def test_a_stage_that_is_none_is_told_with_those_that_are(name: str, problem: str) -> None:
    with pytest.raises(CommandError, match=problem):
        read_stage(name)


@pytest.mark.parametrize("content", ["[parameters]\n", 'stack = "s"\nregoin = "sa-east-1"\n'])
def test_a_stage_with_a_typo_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(deployment, "STAGES", tmp_path)
    (tmp_path / "qa.toml").write_text(content)

    with pytest.raises(CommandError, match=r"stages/qa\.toml needs `stack`"):
        read_stage("qa")


@pytest.mark.parametrize(
    ("subscription", "steps"),
    [
        ("PendingConfirmation", ["a@example.com gets no alarm yet: confirm"]),
        ("arn:aws:sns:sa-east-1:123456789012:alarms:1", []),
    ],
)
def test_the_mail_must_be_confirmed_until_it_is(subscription: str, steps: list[str]) -> None:
    session = mock.Mock()
    session.client.return_value.list_subscriptions_by_topic.return_value = {
        "Subscriptions": [{"SubscriptionArn": subscription}]
    }
    session.client.return_value.describe_stack_resource.return_value = {
        "StackResourceDetail": {"PhysicalResourceId": "topic"}
    }

    told = deployment._next_steps(session, DEV, {"AlarmEmail": "a@example.com"}, first=False)

    assert len(told) == len(steps)
    for step, beginning in zip(told, steps, strict=True):
        assert step.startswith(beginning)


def test_a_deploy_without_an_address_says_so() -> None:
    told = deployment._next_steps(mock.Mock(), DEV, {"AlarmEmail": ""}, first=False)

    assert told == ["No address gets the alarms: deploy with ALARM_EMAIL=, or AlarmTopicArn=."]


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("git@github.com:acme/notifier.git", "https://github.com/acme/notifier"),
        ("https://github.com/acme/notifier", "https://github.com/acme/notifier"),
        (
            "https://robot:token@gitlab.acme.com/a/b/notifier.git",
            "https://gitlab.acme.com/a/b/notifier",
        ),
        ("ssh://git@git.acme.com:2222/acme/notifier.git", "https://git.acme.com/acme/notifier"),
        ("/srv/git/notifier.git", None),
        ("../notifier", None),
        ("", None),
    ],
)
def test_runbook_is_where_the_repository_is(remote: str, url: str | None) -> None:
    expected = f"{url}/blob/HEAD/functions/README.md" if url else None

    assert deployment.runbook_url(remote) == expected


@pytest.mark.parametrize("command", ["build", "deploy", "delete"])
def test_ctrl_c_says_that_cloudformation_goes_on_where_it_has_begun(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        deployment._sam(command)
    assert ("CloudFormation has begun" in capsys.readouterr().out) == (command != "build")
