"""The functions: their mappings, their settings, and when a new version is published."""

import json
from dataclasses import asdict, fields
from typing import Any

import pytest

from notifier import telemetry
from notifier.domain.status import STREAMED, Status
from notifier.settings import (
    ForgetRecipientSettings,
    GetNotificationSettings,
    PollReceiptsSettings,
    PublishStatusEventsSettings,
    ReceiveReceiptSettings,
    RecordReceiptSettings,
    SendNotificationSettings,
    SyncTemplatesSettings,
    WakeNotificationsSettings,
    read,
)
from notifier.use_cases.forget_recipient import VISIBILITY_SECONDS
from notifier.use_cases.send_notification.round import CALL_SECONDS, SETTLE_SECONDS
from tests.template.transformed import ROOT, Template, load, logical_id

SETTINGS: dict[str, Any] = {
    "SendNotificationFunction": SendNotificationSettings,
    "ReceiveReceiptFunction": ReceiveReceiptSettings,
    "RecordReceiptFunction": RecordReceiptSettings,
    "PollReceiptsFunction": PollReceiptsSettings,
    "SyncTemplatesFunction": SyncTemplatesSettings,
    "WakeNotificationsFunction": WakeNotificationsSettings,
    "GetNotificationFunction": GetNotificationSettings,
    "ForgetRecipientFunction": ForgetRecipientSettings,
    "PublishStatusEventsFunction": PublishStatusEventsSettings,
}
# Nothing in the stack calls these.
BY_OPERATORS = {"ForgetRecipientFunction"}
# What `sam remote invoke` waits for an answer.
SAM_CLI_SECONDS = 60
every_function = pytest.mark.parametrize("function", SETTINGS)


def functions(template: Template) -> dict[str, dict[str, Any]]:
    found = template.resources("AWS::Lambda::Function")
    assert found
    return {name: function["Properties"] for name, function in found.items()}


def mappings(template: Template) -> list[dict[str, Any]]:
    found = template.resources("AWS::Lambda::EventSourceMapping").values()
    assert found
    return [mapping["Properties"] for mapping in found]


def of_queues(template: Template) -> list[dict[str, Any]]:
    return [
        mapping
        for mapping in mappings(template)
        if logical_id(mapping["EventSourceArn"]) in template.resources("AWS::SQS::Queue")
    ]


def of_the_stream(template: Template) -> dict[str, Any]:
    (mapping,) = (
        mapping
        for mapping in mappings(template)
        if mapping["EventSourceArn"] == {"Fn::GetAtt": ["LedgerTable", "StreamArn"]}
    )
    return mapping


def versions(template: Template) -> set[str]:
    return set(template.resources("AWS::Lambda::Version"))


def test_functions_run_the_python_that_the_tests_run(template: Template) -> None:
    version = (ROOT / ".python-version").read_text(encoding="utf-8").strip()

    for function in functions(template).values():
        assert function["Runtime"] == f"python{'.'.join(version.split('.')[:2])}"
        assert function["Handler"] == "app.handler"
        assert function["MemorySize"] == 512


def test_functions_follow_the_architecture_and_the_layers_fit_both(template: Template) -> None:
    architectures = template.source["Parameters"]["Architecture"]

    assert architectures["Default"] == "arm64"
    for function in functions(template).values():
        assert function["Architectures"] == [{"Ref": "Architecture"}]
        layers = [template.properties(logical_id(layer)) for layer in function["Layers"]]
        assert len(layers) == 2
        for layer in layers:
            assert layer["CompatibleArchitectures"] == architectures["AllowedValues"]
            assert layer["CompatibleRuntimes"] == [function["Runtime"]]


def test_batches_answer_for_each_record(template: Template) -> None:
    """Without it Lambda deletes what failed, or repeats what was sent."""
    for mapping in mappings(template):
        assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    for mapping in of_queues(template):
        assert mapping["BatchSize"] == 10
        assert mapping["MaximumBatchingWindowInSeconds"] == 0


def test_polling_is_bounded_at_the_mapping_and_nowhere_else(template: Template) -> None:
    """Pollers that fetch more than may run burn the receive counts of healthy requests."""
    for mapping in of_queues(template):
        assert mapping["ScalingConfig"] == {"MaximumConcurrency": {"Ref": "MaximumConcurrency"}}
        assert "ProvisionedPollerConfig" not in mapping
        assert mapping["MetricsConfig"] == {"Metrics": ["EventCount"]}
    for function in functions(template).values():
        assert "ReservedConcurrentExecutions" not in function


def test_no_mapping_drops_a_request_silently(template: Template) -> None:
    """Filters delete what does not match; a function's own dead letters see no polled event."""
    for mapping in of_queues(template):
        assert "FilterCriteria" not in mapping
    for function in functions(template).values():
        assert "DeadLetterConfig" not in function
    assert template.resources("AWS::Lambda::EventInvokeConfig") == {}


def test_no_change_of_the_ledger_is_lost_before_the_stream_forgets_it(template: Template) -> None:
    mapping = of_the_stream(template)

    assert logical_id(mapping["FunctionName"]) == "PublishStatusEventsFunctionAliaslive"
    assert mapping["StartingPosition"] == "TRIM_HORIZON"
    assert mapping["MaximumRetryAttempts"] == -1
    # DynamoDB drops a record after 24 hours, without a report: Lambda reports it, an hour before.
    assert mapping["MaximumRecordAgeInSeconds"] == 23 * 3600
    assert logical_id(mapping["DestinationConfig"]["OnFailure"]["Destination"]) == (
        "UnpublishedQueue"
    )


def test_changes_come_in_order_in_batches_that_wait_for_a_second(template: Template) -> None:
    mapping = of_the_stream(template)

    assert (mapping["BatchSize"], mapping["MaximumBatchingWindowInSeconds"]) == (100, 1)
    assert mapping["ParallelizationFactor"] == 1
    assert "BisectBatchOnFunctionError" not in mapping
    assert "TumblingWindowInSeconds" not in mapping
    assert mapping["MetricsConfig"] == {"Metrics": ["EventCount"]}


def test_the_stream_hands_over_each_status_that_has_an_event(template: Template) -> None:
    (only,) = of_the_stream(template)["FilterCriteria"]["Filters"]

    assert json.loads(only["Pattern"]) == {
        "dynamodb": {
            "NewImage": {"status": {"S": [status for status in Status if status in STREAMED]}}
        }
    }


def test_the_stream_holds_what_was_and_what_is(template: Template) -> None:
    """The function publishes what is new in the newer image."""
    assert template.properties("LedgerTable")["StreamSpecification"] == {
        "StreamViewType": "NEW_AND_OLD_IMAGES"
    }


def test_every_caller_of_a_function_calls_the_alias_that_deployments_move(
    template: Template,
) -> None:
    callers = [
        *(mapping["FunctionName"] for mapping in mappings(template)),
        *(
            integration["Properties"]["IntegrationUri"]
            for integration in template.resources("AWS::ApiGatewayV2::Integration").values()
        ),
        *(
            target["Arn"]
            for rule in template.resources("AWS::Events::Rule").values()
            for target in rule["Properties"]["Targets"]
        ),
        *(
            permission["Properties"]["FunctionName"]
            for permission in template.resources("AWS::Lambda::Permission").values()
        ),
    ]
    aliases = [template.properties(logical_id(caller)) for caller in callers]

    assert {logical_id(alias["FunctionName"]) for alias in aliases} == set(SETTINGS) - BY_OPERATORS
    for alias in aliases:
        assert alias["Name"] == "live"
        assert logical_id(alias["FunctionVersion"]) in versions(template)


def test_every_function_logs_to_a_group_with_a_retention(template: Template) -> None:
    for function in functions(template).values():
        group = template.properties(logical_id(function["LoggingConfig"]["LogGroup"]))
        assert group["RetentionInDays"] == {"Ref": "LogRetentionDays"}


def test_every_function_is_looked_at(template: Template) -> None:
    assert set(functions(template)) == set(SETTINGS)


@every_function
def test_function_has_the_variables_that_its_settings_read_and_no_more(
    template: Template, function: str
) -> None:
    variables = template.properties(function)["Environment"]["Variables"]
    every = {name for name in variables if name.startswith("POWERTOOLS_")} | NOT_OURS
    own = variables.keys() - every

    assert own == {field.name.upper() for field in fields(SETTINGS[function])}
    assert {name: variables[name] for name in every} == {
        "POWERTOOLS_SERVICE_NAME": {"Ref": "AWS::StackName"},
        "POWERTOOLS_METRICS_NAMESPACE": telemetry.NAMESPACE,
        "POWERTOOLS_LOG_LEVEL": "INFO",
        # Lambda publishes no version of what did not change: this does, with each release.
        "RELEASE": {"Ref": "Release"},
        # A call's deadline holds for its connection, too, and nothing interrupts the resolver.
        "RES_OPTIONS": "timeout:1 attempts:2",
    }


NOT_OURS = {"RELEASE", "RES_OPTIONS"}


@every_function
@pytest.mark.parametrize("bound", ["Default", "MinValue", "MaxValue"])
def test_settings_accept_every_value_that_the_parameters_accept(
    template: Template, function: str, bound: str
) -> None:
    parameters = template.source["Parameters"]
    environment = {}
    for name, value in template.properties(function)["Environment"]["Variables"].items():
        match value:
            case {"Ref": str(parameter)} if parameter in parameters:
                definition = parameters[parameter]
                environment[name] = str(definition.get(bound, definition.get("Default", "+")))
            case _:
                environment[name] = "the name of a resource"

    settings = read(SETTINGS[function], environment)

    assert {name: _written(value) for name, value in asdict(settings).items()} == {
        name.lower(): value
        for name, value in environment.items()
        if not name.startswith("POWERTOOLS_") and name not in NOT_OURS
    }


def _written(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_shortest_timeout_is_long_enough_for_a_look_up_and_a_send(template: Template) -> None:
    bounds = template.source["Parameters"]["FunctionTimeoutSeconds"]

    assert bounds["MinValue"] > 2 * (CALL_SECONDS + SETTLE_SECONDS)


def test_operators_functions_end_before_sam_invokes_them_again(
    template: Template,
) -> None:
    for function in BY_OPERATORS:
        assert template.properties(function)["Timeout"] < SAM_CLI_SECONDS


def test_dead_letter_stays_invisible_for_longer_than_a_run_takes(template: Template) -> None:
    assert template.properties("ForgetRecipientFunction")["Timeout"] < VISIBILITY_SECONDS


def test_another_release_publishes_another_version_of_every_function() -> None:
    """It must: a layer or a parameter that changes publishes none."""
    one, other = load(Release="4f1d2c9e7a"), load(Release="b07a11c3d2")

    assert len(versions(one)) == len(SETTINGS)
    assert versions(one).isdisjoint(versions(other))


def test_the_same_release_publishes_none() -> None:
    one, other = load(Release="4f1d2c9e7a"), load(Release="4f1d2c9e7a", MaxAttempts="7")

    assert versions(one) == versions(other)


@every_function
def test_no_canary_unless_asked_for(template: Template, function: str) -> None:
    assert "UpdatePolicy" not in template.transformed["Resources"][f"{function}Aliaslive"]


@every_function
def test_a_canary_is_rolled_back_on_errors_of_the_new_version(
    production: Template, function: str
) -> None:
    alias = production.transformed["Resources"][f"{function}Aliaslive"]
    group = production.properties(f"{function}DeploymentGroup")
    (name,) = [item["Name"] for item in group["AlarmConfiguration"]["Alarms"]]
    alarm = production.properties(logical_id(name))
    version = logical_id(alias["Properties"]["FunctionVersion"])

    assert alias["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]["DeploymentGroupName"] == {
        "Ref": f"{function}DeploymentGroup"
    }
    assert group["DeploymentConfigName"]["Fn::Sub"][1] == {"ConfigName": "Canary10Percent5Minutes"}
    assert "DEPLOYMENT_STOP_ON_ALARM" in group["AutoRollbackConfiguration"]["Events"]
    assert (alarm["Namespace"], alarm["MetricName"]) == ("AWS/Lambda", "Errors")
    assert {item["Name"]: item["Value"] for item in alarm["Dimensions"]} == {
        "FunctionName": {"Ref": function},
        "Resource": {"Fn::Sub": f"${{{function}}}:live"},
        "ExecutedVersion": {"Fn::GetAtt": [version, "Version"]},
    }
