"""The alarms: what they watch, whom they notify, and their pages in the runbook."""

import json
import re
from typing import Any

import pytest

from notifier import telemetry
from notifier.use_cases.record_receipt import ReceiptOutcome
from notifier.use_cases.send_notification.outcomes import Outcome
from notifier.use_cases.send_notification.waits import MAX_JITTER_SECONDS
from tests.template.transformed import ROOT, Template

URGENT = [
    "ServiceLevelAlarm",
    "OldestRequestAlarm",
    "BreakerOpenAlarm",
    "BotMisconfiguredAlarm",
    "FunctionThrottlesAlarm",
    "WebhookAlarm",
    "ApiErrorsAlarm",
]
ALARMS = [
    *URGENT,
    "DeadLettersAlarm",
    "OldestDeadLetterAlarm",
    "WaitingRequestsAlarm",
    "PublishingLateAlarm",
    "UnpublishedAlarm",
    "ReceiptsLateAlarm",
    "ReceiptsDeadLettersAlarm",
    "TemplatePausedAlarm",
    "TemplateCategoryAlarm",
    "TemplatesLateAlarm",
    "CooldownsAlarm",
    "CrashesAlarm",
    "UnknownOutcomesAlarm",
    "OldestReceiptAlarm",
    "ScheduleAlarm",
    "WaitsLateAlarm",
    "AccountLimitedAlarm",
    "ApiRefusalsAlarm",
    "FunctionErrorsAlarm",
    "SendNotificationNewVersionErrorsAlarm",
    "ReceiveReceiptNewVersionErrorsAlarm",
    "RecordReceiptNewVersionErrorsAlarm",
    "PollReceiptsNewVersionErrorsAlarm",
    "SyncTemplatesNewVersionErrorsAlarm",
    "WakeNotificationsNewVersionErrorsAlarm",
    "GetNotificationNewVersionErrorsAlarm",
    "ForgetRecipientNewVersionErrorsAlarm",
    "PublishStatusEventsNewVersionErrorsAlarm",
]


# The runbook's pages, by the name of their alarm.
RUNBOOK = (ROOT / "functions/README.md").read_text(encoding="utf-8")
PAGES = {
    page.partition("\n")[0]: page.partition("\n")[2]
    for page in RUNBOOK.partition("\n# Runbook\n")[2].partition("\n# ")[0].split("\n## ")[1:]
}


def test_every_alarm_is_looked_at(template: Template) -> None:
    assert set(template.resources("AWS::CloudWatch::Alarm")) == set(ALARMS)


@pytest.mark.parametrize("alarm", ALARMS)
def test_alarms_notify_the_topics_of_their_rank(template: Template, alarm: str) -> None:
    properties = template.properties(alarm)
    actions = [
        {"Fn::If": ["HasAlarmTopic", {"Ref": "AlarmTopicArn"}, {"Ref": "AWS::NoValue"}]},
        {"Fn::If": ["HasAlarmEmail", {"Ref": "AlarmTopic"}, {"Ref": "AWS::NoValue"}]},
    ]
    if alarm in URGENT:
        urgent = ["HasUrgentAlarmTopic", {"Ref": "UrgentAlarmTopicArn"}, {"Ref": "AWS::NoValue"}]
        actions.append({"Fn::If": urgent})

    assert properties["AlarmActions"] == properties["OKActions"] == actions
    # A schedule that has stopped measures nothing.
    stops = alarm in {"ScheduleAlarm", "WaitsLateAlarm"}
    missing = "breaching" if stops else "notBreaching"
    assert properties["TreatMissingData"] == missing
    for condition, parameter in (
        ("HasAlarmTopic", "AlarmTopicArn"),
        ("HasUrgentAlarmTopic", "UrgentAlarmTopicArn"),
        ("HasAlarmEmail", "AlarmEmail"),
    ):
        assert template.transformed["Conditions"][condition] == {
            "Fn::Not": [{"Fn::Equals": [{"Ref": parameter}, ""]}]
        }


def test_the_topic_of_the_stack_writes_to_the_address(template: Template) -> None:
    for name in ("AlarmTopic", "AlarmSubscription"):
        assert template.transformed["Resources"][name]["Condition"] == "HasAlarmEmail"
    assert template.properties("AlarmSubscription") == {
        "TopicArn": {"Ref": "AlarmTopic"},
        "Protocol": "email",
        "Endpoint": {"Ref": "AlarmEmail"},
    }


@pytest.mark.parametrize(
    ("alarm", "metric", "threshold"),
    [("ApiRefusalsAlarm", "4xx", 60), ("ApiErrorsAlarm", "5xx", 0)],
)
def test_alarm_watches_refusals_and_errors_of_the_api(
    template: Template, alarm: str, metric: str, threshold: int
) -> None:
    """An HTTP API measures `4xx` and `5xx`: http-api-metrics.html in API Gateway's guide."""
    properties = template.properties(alarm)

    assert (properties["Namespace"], properties["MetricName"]) == ("AWS/ApiGateway", metric)
    assert properties["Dimensions"] == [{"Name": "ApiId", "Value": {"Ref": "HttpApi"}}]
    assert (properties["Statistic"], properties["Threshold"]) == ("Sum", threshold)


def burn_rate(template: Template, in_time: int | None, late: int | None) -> float:
    """Evaluate the expression of ServiceLevelAlarm as CloudWatch's metric math does."""
    (expression,) = (
        metric["Expression"]
        for metric in template.properties("ServiceLevelAlarm")["Metrics"]
        if "Expression" in metric
    )
    functions = {
        "FILL": lambda value, otherwise: otherwise if value is None else value,
        "IF": lambda condition, then, otherwise: then if condition else otherwise,
    }
    return float(eval(expression, functions | {"in_time": in_time, "late": late}))  # noqa: S307 - ours


@pytest.mark.parametrize(
    ("in_time", "late", "rings"),
    [
        (1000, None, False),
        (1000, 10, False),  # the objective
        (850, 150, True),
        (860, 140, False),
        (None, 20, True),
        (16, 3, False),  # too few for a share
        (17, 3, True),
    ],
)
def test_the_service_level_rings_at_fourteen_times_what_the_objective_allows(
    template: Template, in_time: int | None, late: int | None, rings: bool
) -> None:
    alarm = template.properties("ServiceLevelAlarm")

    assert (burn_rate(template, in_time, late) > alarm["Threshold"]) is rings
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 14.4)
    assert (alarm["DatapointsToAlarm"], alarm["EvaluationPeriods"]) == (2, 4)


def test_the_service_level_is_of_the_metrics_that_are_counted(template: Template) -> None:
    stats = [
        metric["MetricStat"]
        for metric in template.properties("ServiceLevelAlarm")["Metrics"]
        if "MetricStat" in metric
    ]

    assert [stat["Metric"]["MetricName"] for stat in stats] == ["sent_in_time", "sent_late"]
    for stat in stats:
        assert (stat["Stat"], stat["Period"]) == ("Sum", 900)
        assert stat["Metric"]["Namespace"] == telemetry.NAMESPACE
        assert stat["Metric"]["Dimensions"] == [
            {"Name": "service", "Value": {"Ref": "AWS::StackName"}}
        ]
    dashboard = template.properties("Dashboard")["DashboardBody"]["Fn::Sub"]
    assert '"sent_in_time"' in dashboard
    assert '"sent_late"' in dashboard


def test_the_api_has_room_for_the_receipts_of_five_full_plans(template: Template) -> None:
    """The guide: 10,000 a second for an account in a region, and bursts of 5,000 (limits.html)."""
    limits = template.properties("HttpApiStage")["DefaultRouteSettings"]

    assert 5 * 4 * 50 <= limits["ThrottlingRateLimit"] <= 10_000
    assert limits["ThrottlingRateLimit"] <= limits["ThrottlingBurstLimit"] <= 5_000


def test_a_schedule_that_stops_is_noticed(template: Template) -> None:
    alarm = template.properties("ScheduleAlarm")
    rule = template.properties("PollReceiptsFunctionEveryMinute")

    assert rule["ScheduleExpression"] == "rate(1 minute)"
    assert (alarm["Namespace"], alarm["MetricName"], alarm["Statistic"]) == (
        "AWS/Lambda",
        "Invocations",
        "Sum",
    )
    assert alarm["Dimensions"] == [
        {"Name": "FunctionName", "Value": {"Ref": "PollReceiptsFunction"}}
    ]
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("LessThanThreshold", 1)
    assert alarm["Period"] == 60
    assert "DatapointsToAlarm" not in alarm


def test_waits_that_are_over_for_long_or_not_looked_at_are_noticed(template: Template) -> None:
    alarm = template.properties("WaitsLateAlarm")
    rule = template.properties("WakeNotificationsFunctionEveryMinute")

    assert rule["ScheduleExpression"] == "rate(1 minute)"
    assert (alarm["Namespace"], alarm["MetricName"]) == (telemetry.NAMESPACE, "waits_late")
    assert alarm["Dimensions"] == [{"Name": "service", "Value": {"Ref": "AWS::StackName"}}]
    assert (alarm["Statistic"], alarm["Threshold"], alarm["Period"]) == ("Maximum", 900, 60)
    assert "DatapointsToAlarm" not in alarm
    dashboard = template.properties("Dashboard")["DashboardBody"]["Fn::Sub"]
    assert '"waits_late"' in dashboard


def test_alarm_watches_the_age_of_receipts(template: Template) -> None:
    alarm = template.properties("OldestReceiptAlarm")

    assert alarm["MetricName"] == "ApproximateAgeOfOldestMessage"
    assert alarm["Dimensions"] == [
        {"Name": "QueueName", "Value": {"Fn::GetAtt": ["ReceiptsQueue", "QueueName"]}}
    ]
    assert alarm["Threshold"] == 900


@pytest.mark.parametrize("alarm", ALARMS)
def test_an_alarm_begins_with_its_rank_and_links_to_its_page(
    template: Template, alarm: str
) -> None:
    description = template.properties(alarm)["AlarmDescription"]["Fn::Sub"]
    rank = "Urgent" if alarm in URGENT else "Next working day"

    named = re.fullmatch(r"([A-Z][ a-z]+)\. [A-Z].+\. \$\{RunbookUrl\}#(\w+)", description)

    assert named is not None
    assert named[1] == rank
    [page] = [name for name in PAGES if name.lower() == named[2]]
    assert alarm.endswith(page)
    assert PAGES[page].startswith(f"\n*{rank}.* ")


def test_the_runbook_has_no_page_without_an_alarm() -> None:
    assert [page for page in PAGES if not any(alarm.endswith(page) for alarm in ALARMS)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_the_runbook_has_the_same_order(page: str) -> None:
    parts = re.findall(r"^\*\*(.+?)[.:]?\*\*", PAGES[page], re.MULTILINE)
    expected = ["Customers notice", "First command", "Cause and cure", "Over when"]

    assert [part for part in parts if part in expected] == expected
    assert re.search(r"\n\*\*First command:\*\*\n\n```sh\n", PAGES[page])


@pytest.mark.parametrize("metric", ["Errors", "Throttles"])
def test_alarms_watch_errors_and_throttles_of_every_function(
    template: Template, metric: str
) -> None:
    total, *queries = template.properties(f"Function{metric}Alarm")["Metrics"]

    assert total["Expression"] == "SUM(FILL(METRICS(), 0))"
    for query in queries:
        stat = query["MetricStat"]
        assert (query["ReturnData"], stat["Stat"], stat["Period"]) == (False, "Sum", 60)
        assert (stat["Metric"]["Namespace"], stat["Metric"]["MetricName"]) == ("AWS/Lambda", metric)
    watched = [
        dimension["Value"]["Ref"]
        for query in queries
        for dimension in query["MetricStat"]["Metric"]["Dimensions"]
    ]
    assert sorted(watched) == sorted(template.resources("AWS::Lambda::Function"))


@pytest.mark.parametrize("alarm", ["BreakerOpenAlarm", "BotMisconfiguredAlarm"])
def test_an_alarm_stays_on_between_two_visits_of_the_requests_that_wait(
    template: Template, alarm: str
) -> None:
    properties = template.properties(alarm)
    longest_wait = 1.5 * template.source["Parameters"]["BreakerWaitSeconds"]["MaxValue"]

    assert properties["DatapointsToAlarm"] == 1
    assert properties["EvaluationPeriods"] * properties["Period"] >= longest_wait


def test_dead_letters_are_not_deleted_unnoticed(template: Template) -> None:
    alarm = template.properties("OldestDeadLetterAlarm")
    kept = template.properties("DeadLettersQueue")["MessageRetentionPeriod"]

    assert alarm["Dimensions"] == [
        {"Name": "QueueName", "Value": {"Fn::GetAtt": ["DeadLettersQueue", "QueueName"]}}
    ]
    assert alarm["MetricName"] == "ApproximateAgeOfOldestMessage"
    assert alarm["Threshold"] == kept - 2 * 86_400


@pytest.mark.parametrize(
    "queue", ["DeadLettersQueue", "ReceiptsDeadLettersQueue", "UnpublishedQueue"]
)
def test_one_dead_letter_rings_the_alarm_even_while_it_is_read(
    template: Template, queue: str
) -> None:
    alarm = template.properties(queue.replace("Queue", "Alarm"))
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
            {"Name": "QueueName", "Value": {"Fn::GetAtt": [queue, "QueueName"]}}
        ]


def test_alarm_watches_the_age_of_requests_on_the_queue(template: Template) -> None:
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


def test_alarm_watches_requests_for_as_long_as_they_wait(template: Template) -> None:
    alarm = template.properties("WaitingRequestsAlarm")

    assert (alarm["Namespace"], alarm["MetricName"]) == (telemetry.NAMESPACE, "oldest_request")
    assert alarm["Dimensions"] == [{"Name": "service", "Value": {"Ref": "AWS::StackName"}}]
    assert (alarm["Statistic"], alarm["Threshold"]) == (
        "Maximum",
        {"Ref": "OldestRequestAlarmSeconds"},
    )
    assert alarm["DatapointsToAlarm"] == 1
    assert alarm["EvaluationPeriods"] * alarm["Period"] >= MAX_JITTER_SECONDS


def test_status_events_that_are_late_are_noticed_long_before_they_are_lost(
    template: Template,
) -> None:
    alarm = template.properties("PublishingLateAlarm")
    (mapping,) = (
        resource["Properties"]
        for resource in template.resources("AWS::Lambda::EventSourceMapping").values()
        if "MaximumRecordAgeInSeconds" in resource["Properties"]
    )

    assert (alarm["Namespace"], alarm["MetricName"]) == ("AWS/Lambda", "IteratorAge")
    assert alarm["Dimensions"] == [
        {"Name": "FunctionName", "Value": {"Ref": "PublishStatusEventsFunction"}}
    ]
    assert (alarm["Statistic"], alarm["ComparisonOperator"]) == ("Maximum", "GreaterThanThreshold")
    assert alarm["Threshold"] == 300 * 1000
    assert alarm["DatapointsToAlarm"] == 1
    assert alarm["Threshold"] / 1000 < mapping["MaximumRecordAgeInSeconds"] / 100
    dashboard = template.properties("Dashboard")["DashboardBody"]["Fn::Sub"]
    assert '"IteratorAge"' in dashboard


def test_receipts_that_are_asked_for_too_late_are_noticed(template: Template) -> None:
    alarm = template.properties("ReceiptsLateAlarm")

    assert (alarm["Namespace"], alarm["MetricName"]) == (telemetry.NAMESPACE, "receipts_late")
    assert alarm["Dimensions"] == [{"Name": "service", "Value": {"Ref": "AWS::StackName"}}]
    assert (alarm["Statistic"], alarm["Threshold"]) == ("Maximum", 900)
    dashboard = template.properties("Dashboard")["DashboardBody"]["Fn::Sub"]
    assert '"receipts_late"' in dashboard


@pytest.mark.parametrize(
    ("alarm", "outcome"),
    [
        ("BreakerOpenAlarm", Outcome.BREAKER_OPEN),
        ("BotMisconfiguredAlarm", Outcome.MISCONFIGURED),
        ("UnknownOutcomesAlarm", Outcome.UNKNOWN),
        ("CrashesAlarm", Outcome.CRASHED),
        ("WebhookAlarm", "webhook_unauthorized"),
        ("AccountLimitedAlarm", "account_limited"),
    ],
)
def test_alarms_on_our_own_metrics_watch_what_is_counted(
    template: Template, alarm: str, outcome: str
) -> None:
    properties = template.properties(alarm)

    assert (properties["Namespace"], properties["MetricName"]) == (
        telemetry.NAMESPACE,
        str(outcome),
    )
    assert properties["Dimensions"] == [{"Name": "service", "Value": {"Ref": "AWS::StackName"}}]
    assert properties["Statistic"] == "Sum"


def test_the_dashboard_shows_every_outcome_and_every_function(template: Template) -> None:
    body = template.properties("Dashboard")["DashboardBody"]["Fn::Sub"]
    shown = json.dumps(json.loads(body))

    for outcome in {*Outcome} - {Outcome.SETTLED, Outcome.DENIED, Outcome.UNSETTLED}:
        assert f'"{outcome}"' in shown
    for effect in ReceiptOutcome:
        assert f'"{effect}"' in shown
    for function in template.resources("AWS::Lambda::Function"):
        graphs = 3  # duration, errors, throttles
        graphs += function == "PublishStatusEventsFunction"  # how late it is
        assert shown.count(f"${{{function}}}") == graphs
