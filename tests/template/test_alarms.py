"""The alarms: what they watch, and whom they tell."""

import json
from typing import Any

import pytest

from notifier import telemetry
from notifier.delivery import Outcome
from notifier.receipts import Effect
from tests.template.transformed import Template

ALARMS = [
    "DeadLettersAlarm",
    "OldestRequestAlarm",
    "ReceiptsDeadLettersAlarm",
    "BotShutAlarm",
    "BotMisconfiguredAlarm",
    "UnknownOutcomesAlarm",
    "SendNotificationNewVersionErrorsAlarm",
    "ReceiveReceiptNewVersionErrorsAlarm",
    "RecordReceiptNewVersionErrorsAlarm",
    "PollReceiptsNewVersionErrorsAlarm",
]


def test_every_alarm_is_looked_at(template: Template) -> None:
    assert set(template.resources("AWS::CloudWatch::Alarm")) == set(ALARMS)


@pytest.mark.parametrize("alarm", ALARMS)
def test_alarms_say_what_is_wrong_and_tell_the_topic_if_there_is_one(
    template: Template, alarm: str
) -> None:
    properties = template.properties(alarm)
    actions = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}

    assert properties["AlarmDescription"]
    assert properties["AlarmActions"] == properties["OKActions"] == actions
    assert properties["TreatMissingData"] == "notBreaching"
    assert template.transformed["Conditions"]["HasAlarmTopic"] == {
        "Fn::Not": [{"Fn::Equals": [{"Ref": "AlarmTopicArn"}, ""]}]
    }


def test_one_dead_letter_is_enough_also_while_somebody_reads_it(template: Template) -> None:
    alarm = template.properties("DeadLettersAlarm")
    (total,) = [metric for metric in alarm["Metrics"] if metric.get("ReturnData", True)]
    watched: dict[str, dict[str, Any]] = {
        metric["Id"]: metric["MetricStat"] for metric in alarm["Metrics"] if metric is not total
    }

    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 0)
    assert alarm["EvaluationPeriods"] == 1
    assert sorted(total["Expression"].split(" + ")) == sorted(watched)
    assert {stat["Metric"]["MetricName"] for stat in watched.values()} == {
        "ApproximateNumberOfMessagesVisible",
        "ApproximateNumberOfMessagesNotVisible",
    }
    for stat in watched.values():
        assert (stat["Metric"]["Namespace"], stat["Stat"]) == ("AWS/SQS", "Maximum")
        assert stat["Metric"]["Dimensions"] == [
            {"Name": "QueueName", "Value": {"Fn::GetAtt": ["DeadLettersQueue", "QueueName"]}}
        ]


def test_requests_that_nobody_takes_are_noticed(template: Template) -> None:
    alarm = template.properties("OldestRequestAlarm")

    assert (alarm["Namespace"], alarm["MetricName"], alarm["Statistic"]) == (
        "AWS/SQS",
        "ApproximateAgeOfOldestMessage",
        "Maximum",
    )
    assert alarm["Dimensions"] == [
        {"Name": "QueueName", "Value": {"Fn::GetAtt": ["RequestsQueue", "QueueName"]}}
    ]
    assert alarm["ComparisonOperator"] == "GreaterThanThreshold"
    assert alarm["Threshold"] == {"Ref": "OldestRequestAlarmSeconds"}
    assert alarm["EvaluationPeriods"] == 1


def test_one_receipt_that_cannot_be_recorded_is_enough(template: Template) -> None:
    alarm = template.properties("ReceiptsDeadLettersAlarm")

    assert (alarm["Namespace"], alarm["MetricName"], alarm["Statistic"]) == (
        "AWS/SQS",
        "ApproximateNumberOfMessagesVisible",
        "Maximum",
    )
    assert alarm["Dimensions"] == [
        {"Name": "QueueName", "Value": {"Fn::GetAtt": ["ReceiptsDeadLettersQueue", "QueueName"]}}
    ]
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 0)


@pytest.mark.parametrize(
    ("alarm", "outcome"),
    [
        ("BotShutAlarm", Outcome.BOT_SHUT),
        ("BotMisconfiguredAlarm", Outcome.MISCONFIGURED),
        ("UnknownOutcomesAlarm", Outcome.UNKNOWN),
    ],
)
def test_alarms_on_our_own_metrics_watch_what_is_counted(
    template: Template, alarm: str, outcome: Outcome
) -> None:
    properties = template.properties(alarm)

    assert (properties["Namespace"], properties["MetricName"]) == (
        telemetry.NAMESPACE,
        outcome.value,
    )
    assert properties["Dimensions"] == [{"Name": "service", "Value": telemetry.SERVICE}]
    assert properties["Statistic"] == "Sum"


def test_the_dashboard_shows_every_outcome_and_every_function(template: Template) -> None:
    body = template.properties("Dashboard")["DashboardBody"]["Fn::Sub"]
    shown = json.dumps(json.loads(body))

    for outcome in {*Outcome} - {Outcome.SETTLED, Outcome.DENIED, Outcome.UNSETTLED}:
        assert f'"{outcome}"' in shown
    for effect in Effect:
        assert f'"{effect}"' in shown
    for function in template.resources("AWS::Lambda::Function"):
        assert f"${{{function}}}" in shown
