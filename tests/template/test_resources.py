"""What the stack is made of, and what holds for every part of it."""

import json
import tomllib
from collections import Counter

import pytest

from notifier.domain.bots import PLACEHOLDER, Bot, InvalidBot, parse_bots
from tests.template.transformed import ROOT, Template, mentions

EXPECTED = {
    "AWS::ApiGatewayV2::Api": 1,
    "AWS::ApiGatewayV2::Integration": 2,
    "AWS::ApiGatewayV2::Route": 3,
    "AWS::ApiGatewayV2::Stage": 1,
    "AWS::CloudWatch::Alarm": 35,
    "AWS::CloudWatch::Dashboard": 1,
    "AWS::DynamoDB::Table": 2,
    "AWS::Events::Rule": 3,
    "AWS::IAM::Role": 9,
    "AWS::Lambda::Alias": 9,
    "AWS::Lambda::EventSourceMapping": 3,
    "AWS::Lambda::Function": 9,
    "AWS::Lambda::LayerVersion": 2,
    "AWS::Lambda::Permission": 5,
    "AWS::Lambda::Version": 9,
    "AWS::Logs::LogGroup": 10,
    "AWS::SQS::Queue": 5,
    "AWS::SQS::QueuePolicy": 5,
    "AWS::SNS::Subscription": 1,
    "AWS::SNS::Topic": 1,
    "AWS::SecretsManager::Secret": 2,
}
CANARY = {
    "AWS::CodeDeploy::Application": 1,
    "AWS::CodeDeploy::DeploymentGroup": 9,
    "AWS::IAM::Role": 1,
}
NAMES = {
    "AlarmName",
    "FunctionName",
    "LogGroupName",
    "QueueName",
    "RoleName",
    "SecretName",
    "TableName",
    "TopicName",
}


def types(template: Template) -> dict[str, int]:
    return Counter(resource["Type"] for resource in template.transformed["Resources"].values())


def test_nothing_appears_or_vanishes_by_mistake(template: Template) -> None:
    assert types(template) == EXPECTED


def test_production_adds_what_a_canary_needs_and_nothing_else(production: Template) -> None:
    assert types(production) == Counter(EXPECTED) + Counter(CANARY)


def test_nothing_has_a_physical_name(template: Template) -> None:
    named = {
        f"{logical_id}.{name}"
        for logical_id, resource in template.source["Resources"].items()
        if resource["Type"] != "AWS::Lambda::Permission"  # there it names whom it is about
        for name in NAMES & resource["Properties"].keys()
        if not isinstance(resource["Properties"][name], dict)
        or "Fn::Sub" in resource["Properties"][name]
    }
    assert named == set()

    secrets = template.resources("AWS::SecretsManager::Secret").values()
    assert [secret for secret in secrets if "Name" in secret["Properties"]] == []

    for layer in template.resources("AWS::Lambda::LayerVersion").values():
        assert layer["Properties"]["LayerName"]["Fn::Sub"].startswith("${AWS::StackName}-")


def test_the_bots_placeholder_is_refused_by_name(template: Template) -> None:
    bots = parse_bots(template.properties("BotsSecret")["SecretString"])

    assert list(bots) == ["default"]
    assert isinstance(bots["default"], InvalidBot)
    assert "key: is still the placeholder" in bots["default"].problem


def test_the_bots_placeholder_is_accepted_with_key_and_namespace_filled_in(
    template: Template,
) -> None:
    secret = json.loads(template.properties("BotsSecret")["SecretString"])
    assert secret["default"]["key"] == f"Key {PLACEHOLDER}"

    secret["default"]["key"] = "Key Ym90OnNlY3JldA=="
    assert isinstance(parse_bots(json.dumps(secret))["default"], InvalidBot)
    secret["default"]["namespace"] = "c8e7b1d4_5f2a"

    assert isinstance(parse_bots(json.dumps(secret))["default"], Bot)


def test_the_bots_placeholder_never_changes(template: Template) -> None:
    """CloudFormation writes a changed text over the keys that the operator has put there."""
    assert template.properties("BotsSecret")["SecretString"] == (
        "{\n"
        '  "default": {\n'
        '    "base_url": "https://http.msging.net",\n'
        '    "key": "Key REPLACE_ME",\n'
        '    "namespace": "REPLACE_ME",\n'
        '    "messages_per_second": 50,\n'
        '    "commands_per_second": 200\n'
        "  }\n"
        "}\n"
    )


def test_every_log_group_has_the_retention_of_the_parameter(template: Template) -> None:
    for group in template.resources("AWS::Logs::LogGroup").values():
        assert group["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"}


def test_aws_generates_the_webhook_secret(template: Template) -> None:
    """It is not chosen by hand, and no template, history or console shows it."""
    secret = template.properties("WebhookSecret")

    assert "SecretString" not in secret
    assert secret["GenerateSecretString"]["PasswordLength"] >= 32


def test_outputs_name_what_operators_paste(template: Template) -> None:
    outputs = template.transformed["Outputs"]

    assert set(outputs) == {
        "RequestsQueueUrl",
        "RequestsQueueArn",
        "DeadLettersQueueUrl",
        "IdentitiesTableName",
        "LedgerTableName",
        "BotsSecretArn",
        "DashboardUrl",
        "SendNotificationLogGroup",
        "PublishStatusEventsLogGroup",
        "UnpublishedQueueUrl",
        "ReceiveReceiptLogGroup",
        "RecordReceiptLogGroup",
        "ReceiptsUrl",
        "ReceiptsQueueUrl",
        "NotificationsUrl",
        "WebhookSecretArn",
    }
    assert all(output["Description"] for output in outputs.values())


@pytest.mark.parametrize(
    ("environment", "stage"), [("default", "dev"), ("production", "production")]
)
def test_every_resource_is_tagged_with_its_stage(environment: str, stage: str) -> None:
    """CloudFormation hands a stack's tags on to whatever of it can have some."""
    deploy = tomllib.loads((ROOT / "samconfig.toml").read_text())[environment]["deploy"]

    assert deploy["parameters"]["tags"] == f"project=blip-notifier stage={stage}"


def test_two_stacks_share_no_metric_alarm_or_widget(template: Template) -> None:
    """Metrics of ours have the stack's name as a dimension; AWS's have a resource of the stack."""
    for name, alarm in template.resources("AWS::CloudWatch::Alarm").items():
        properties = alarm["Properties"]
        metrics = [
            query["MetricStat"]["Metric"]
            for query in properties.get("Metrics", [])
            if "MetricStat" in query
        ]
        for metric in metrics or [properties]:
            named = mentions(metric["Dimensions"])
            assert named, name
            assert named <= {"AWS::StackName", *template.transformed["Resources"]}, name
    body = json.loads(template.properties("Dashboard")["DashboardBody"]["Fn::Sub"])
    for widget in body["widgets"]:
        first, *_ = widget["properties"]["metrics"]
        assert "${" in json.dumps(first), widget["properties"]["title"]
