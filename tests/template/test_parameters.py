"""The parameters: described, bounded, used, and found in the console's groups."""

import re
from typing import Any

import pytest

from tests.template.transformed import Template, load, mentions

DEFAULTS = {
    "AlarmEmail": "",
    "AlarmTopicArn": "",
    "UrgentAlarmTopicArn": "",
    "Architecture": "arm64",
    "BackoffBaseSeconds": 5,
    "BackoffMaxSeconds": 900,
    "BreakerWaitSeconds": 600,
    "CanaryDeployments": "false",
    "EventBusName": "default",
    "FunctionTimeoutSeconds": 30,
    "IdentityNegativeTtlSeconds": 86400,
    "IdentityTtlSeconds": 518400,
    "KmsKeyArn": "",
    "LedgerRestoredAt": "1970-01-01T00:00:00Z",
    "LogRetentionDays": 30,
    "MaxAttempts": 20,
    "MaxWaitSeconds": 604800,
    "MaximumConcurrency": 5,
    "OldestRequestAlarmSeconds": 1800,
    "CooldownSeconds": 120,
    "ProducerAccounts": "",
    "PublishAllReceipts": "false",
    "PublisherArns": "",
    "Release": "dev",
    "RunbookUrl": "functions/README.md",
    "SettleWindowSeconds": 900,
}
parameter = pytest.mark.parametrize("name", [*DEFAULTS, "AllowedRecipients"])


def accepts(definition: dict[str, Any], value: str) -> bool:
    """Return whether CloudFormation would take the value."""
    if "AllowedValues" in definition:
        return value in map(str, definition["AllowedValues"])
    if definition["Type"] == "Number":
        return int(definition["MinValue"]) <= int(value) <= int(definition["MaxValue"])
    return re.fullmatch(definition["AllowedPattern"], value) is not None


def test_the_parameters_and_their_defaults(template: Template) -> None:
    parameters = template.source["Parameters"]

    assert {
        name: definition["Default"]
        for name, definition in parameters.items()
        if "Default" in definition
    } == DEFAULTS


def test_only_the_allowed_recipients_have_no_default(template: Template) -> None:
    parameters = template.source["Parameters"]

    assert {name for name in parameters if "Default" not in parameters[name]} == {
        "AllowedRecipients"
    }


@parameter
def test_a_parameter_is_described_and_bounded(template: Template, name: str) -> None:
    definition = template.source["Parameters"][name]

    assert definition["Description"].endswith(".")
    assert definition["Type"] in {"String", "Number"}
    assert "Default" not in definition or accepts(definition, str(definition["Default"]))


@parameter
def test_a_parameter_is_used(template: Template, name: str) -> None:
    sections = ("Conditions", "Globals", "Resources", "Outputs")

    assert name in mentions([template.source[section] for section in sections])


def test_the_console_shows_every_parameter_once(template: Template) -> None:
    groups = template.source["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]

    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(
        template.source["Parameters"]
    )


def test_at_most_six_conditions_and_each_is_used(template: Template) -> None:
    conditions = template.source["Conditions"]

    assert len(conditions) <= 6
    for name in conditions:
        assert f"'Fn::If': ['{name}'," in str(template.source["Resources"])


@pytest.mark.parametrize(
    ("release", "accepted"),
    [
        ("4f1d2c9e7a", True),
        ("2611222147", True),
        ("4f1d2c9e7ab", False),  # SAM cuts after ten characters
        ("v1.2.3-4-ga", False),  # no part of a logical id
        ("", False),
    ],
)
def test_release_is_short_enough_for_sam_to_tell_two_apart(
    template: Template, release: str, accepted: bool
) -> None:
    assert accepts(template.source["Parameters"]["Release"], release) is accepted


@pytest.mark.parametrize(
    ("recipients", "accepted"),
    [
        ("+", True),
        ("+5531999998888", True),
        ("+5531999998888,+1415", True),
        ("", False),  # none, or all: ambiguous
        ("5531999998888", False),
        ("+5531, +1415", False),
        ("+5531,", False),
        ("+5531,+", False),  # every number, in a list that looks like a few
    ],
)
def test_allowed_recipients_are_numbers(
    template: Template, recipients: str, accepted: bool
) -> None:
    assert accepts(template.source["Parameters"]["AllowedRecipients"], recipients) is accepted


def test_sam_still_cuts_releases_after_ten_characters() -> None:
    """Where it does no longer, the parameter's pattern may be wider."""
    versions = load(Release="4f1d2c9e7a-and-more").resources("AWS::Lambda::Version")

    assert versions
    assert all(version.endswith("Version4f1d2c9e7a") for version in versions)


@pytest.mark.parametrize(
    ("accounts", "accepted"),
    [("", True), ("123456789012", True), ("123456789012,210987654321", True), ("*", False)],
)
def test_producers_are_named_by_account(template: Template, accounts: str, accepted: bool) -> None:
    assert accepts(template.source["Parameters"]["ProducerAccounts"], accounts) is accepted


@pytest.mark.parametrize(
    ("arns", "accepted"),
    [
        ("", True),
        ("arn:aws:sns:sa-east-1:123456789012:orders", True),
        ("arn:aws:events:sa-east-1:123456789012:rule/orders", True),
        ("arn:aws:events:sa-east-1:123456789012:rule/shop/orders", True),
        (
            "arn:aws:sns:sa-east-1:123456789012:a,arn:aws:events:sa-east-1:123456789012:rule/b",
            True,
        ),
        ("arn:aws:sns:sa-east-1:123456789012:*", False),  # any topic
        ("arn:aws:sns:*:123456789012:orders", False),
        ("arn:aws:events:sa-east-1:123456789012:event-bus/default", False),  # a bus is no rule
        ("arn:aws:sns:sa-east-1:123456789012:a,", False),
        ("*", False),
    ],
)
def test_topics_and_rules_are_named_whole(template: Template, arns: str, accepted: bool) -> None:
    assert accepts(template.source["Parameters"]["PublisherArns"], arns) is accepted


def test_accounts_are_as_many_as_a_policy_has_principals_for(template: Template) -> None:
    accounts = template.source["Parameters"]["ProducerAccounts"]

    assert accepts(accounts, ",".join(["123456789012"] * 40))
    assert not accepts(accounts, ",".join(["123456789012"] * 41))


@pytest.mark.parametrize(
    ("arn", "accepted"),
    [
        ("", True),
        ("arn:aws:sns:sa-east-1:123456789012:alarms", True),
        ("arn:aws-us-gov:sns:us-gov-west-1:123456789012:on-call_2", True),
        ("arn:aws:sqs:sa-east-1:123456789012:alarms", False),
        ("alarms", False),
    ],
)
def test_the_alarm_topic_is_a_topic(template: Template, arn: str, accepted: bool) -> None:
    assert accepts(template.source["Parameters"]["AlarmTopicArn"], arn) is accepted
    assert accepts(template.source["Parameters"]["UrgentAlarmTopicArn"], arn) is accepted


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("functions/README.md", True),
        ("https://github.com/acme/notifier/blob/main/functions/README.md", True),
        ("https://github.com/acme/notifier#readme", False),  # the page's anchor comes behind it
        ("", False),
    ],
)
def test_the_runbook_has_an_address(template: Template, url: str, accepted: bool) -> None:
    assert accepts(template.source["Parameters"]["RunbookUrl"], url) is accepted


@pytest.mark.parametrize(
    ("address", "accepted"),
    [
        ("", True),
        ("on-call@example.com", True),
        ("on call@example.com", False),
        ("example.com", False),
        ("a@b@example.com", False),
    ],
)
def test_alarm_email_is_an_address(template: Template, address: str, accepted: bool) -> None:
    assert accepts(template.source["Parameters"]["AlarmEmail"], address) is accepted
