"""Queues and tables: retention, encryption, policies, visibility."""

from typing import Any

import pytest

from notifier.aws.queues import MAX_FAILURE_BYTES
from notifier.contract.parse import MAX_BODY_BYTES
from tests.template.transformed import Template, as_list, logical_id

FOURTEEN_DAYS = 14 * 24 * 3600
TWELVE_HOURS = 12 * 3600
QUEUES = [
    "RequestsQueue",
    "DeadLettersQueue",
    "ReceiptsQueue",
    "ReceiptsDeadLettersQueue",
    "UnpublishedQueue",
]
TABLES = ["LedgerTable", "IdentitiesTable"]
OWN_KEY = {"Fn::If": ["HasKey", {"Ref": "KmsKeyArn"}, {"Ref": "AWS::NoValue"}]}


def test_every_queue_and_table_is_looked_at(template: Template) -> None:
    assert set(template.resources("AWS::SQS::Queue")) == set(QUEUES)
    assert set(template.resources("AWS::DynamoDB::Table")) == set(TABLES)


@pytest.mark.parametrize("queue", QUEUES)
def test_queues_are_encrypted_and_keep_for_as_long_as_sqs_can(
    template: Template, queue: str
) -> None:
    properties = template.properties(queue)

    assert properties["SqsManagedSseEnabled"] == {"Fn::If": ["HasKey", False, True]}
    assert properties["KmsMasterKeyId"] == OWN_KEY
    assert properties["MessageRetentionPeriod"] == FOURTEEN_DAYS


def statements(policy: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the statements of a queue's policy, those that a condition guards among them."""
    return [
        statement["Fn::If"][1] if "Fn::If" in statement else statement
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
    ]


@pytest.mark.parametrize("queue", QUEUES)
def test_queues_refuse_connections_without_encryption(template: Template, queue: str) -> None:
    denials = [
        statement
        for policy in template.resources("AWS::SQS::QueuePolicy").values()
        if queue in map(logical_id, policy["Properties"]["Queues"])
        for statement in statements(policy)
        if statement["Effect"] == "Deny"
        and queue in map(logical_id, as_list(statement["Resource"]))
    ]

    assert [(d["Principal"], d["Action"], d["Condition"]) for d in denials] == [
        ("*", "sqs:*", {"Bool": {"aws:SecureTransport": "false"}})
    ]


def test_no_other_principal_may_publish_unless_a_parameter_names_it(template: Template) -> None:
    for policy in template.resources("AWS::SQS::QueuePolicy").values():
        always = [s for s in policy["Properties"]["PolicyDocument"]["Statement"] if "Sid" in s]
        assert [statement["Effect"] for statement in always] == ["Deny"]


def test_named_principals_may_publish_requests_and_nothing_else(
    template: Template,
) -> None:
    allowed = [
        statement
        for policy in template.resources("AWS::SQS::QueuePolicy").values()
        for statement in statements(policy)
        if statement["Effect"] == "Allow"
    ]
    services, accounts = allowed

    assert {logical_id(statement["Resource"]) for statement in allowed} == {"RequestsQueue"}
    assert services["Action"] == "sqs:SendMessage"
    assert services["Condition"] == {
        "ArnEquals": {"aws:SourceArn": {"Fn::Split": [",", {"Ref": "PublisherArns"}]}}
    }
    assert accounts["Action"] == ["sqs:SendMessage", "sqs:GetQueueUrl"]
    assert accounts["Principal"] == {"AWS": {"Fn::Split": [",", {"Ref": "ProducerAccounts"}]}}


def test_visibility_is_six_timeouts_or_more_whatever_the_timeout(template: Template) -> None:
    bounds = template.source["Parameters"]["FunctionTimeoutSeconds"]
    mappings = {
        name: mapping
        for name, mapping in template.resources("AWS::Lambda::EventSourceMapping").items()
        if logical_id(mapping["Properties"]["EventSourceArn"]) in QUEUES
    }
    assert mappings

    for mapping in mappings.values():
        alias = template.properties(logical_id(mapping["Properties"]["FunctionName"]))
        function = template.properties(logical_id(alias["FunctionName"]))
        queue = template.properties(logical_id(mapping["Properties"]["EventSourceArn"]))
        window = mapping["Properties"]["MaximumBatchingWindowInSeconds"]

        for seconds in range(bounds["MinValue"], bounds["MaxValue"] + 1):
            chosen = Template(
                template.source,
                template.transformed,
                template.parameters | {"FunctionTimeoutSeconds": str(seconds)},
            )
            timeout = int(chosen.value(function["Timeout"]))
            visibility = int(chosen.value(queue["VisibilityTimeout"]))
            assert 6 * timeout + window <= visibility <= TWELVE_HOURS


def test_the_timeout_is_the_parameter(template: Template) -> None:
    assert template.properties("SendNotificationFunction")["Timeout"] == {
        "Ref": "FunctionTimeoutSeconds"
    }


def test_sqs_gives_up_on_a_request_later_than_the_function(template: Template) -> None:
    redrive = template.properties("RequestsQueue")["RedrivePolicy"]
    parameters = template.source["Parameters"]

    assert logical_id(redrive["deadLetterTargetArn"]) == "DeadLettersQueue"
    assert redrive["maxReceiveCount"] == 1000
    assert parameters["MaxAttempts"]["MaxValue"] < redrive["maxReceiveCount"]
    assert parameters["MaxWaitSeconds"]["MaxValue"] < FOURTEEN_DAYS


def test_receipts_are_tried_for_long_before_they_are_set_aside(template: Template) -> None:
    redrive = template.properties("ReceiptsQueue")["RedrivePolicy"]

    assert logical_id(redrive["deadLetterTargetArn"]) == "ReceiptsDeadLettersQueue"
    assert redrive["maxReceiveCount"] >= 5


def test_a_dead_letter_has_room_for_its_attributes(template: Template) -> None:
    requests, letters = map(template.properties, QUEUES[:2])

    assert requests["MaximumMessageSize"] + 64 * 1024 <= letters["MaximumMessageSize"]


def test_a_dead_letter_of_the_largest_body_can_be_put_back_with_its_attributes(
    template: Template,
) -> None:
    largest = MAX_BODY_BYTES + MAX_FAILURE_BYTES + 2048

    assert template.properties("RequestsQueue")["MaximumMessageSize"] >= largest


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_encrypted_recoverable_and_outlive_the_stack(
    template: Template, table: str
) -> None:
    resource = template.resources("AWS::DynamoDB::Table")[table]
    properties = resource["Properties"]

    assert properties["BillingMode"] == "PAY_PER_REQUEST"
    assert properties["SSESpecification"] == {
        "SSEEnabled": True,
        "SSEType": "KMS",
        "KMSMasterKeyId": OWN_KEY,
    }
    assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert properties["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}
    assert properties["KeySchema"] == [{"AttributeName": "key", "KeyType": "HASH"}]
    for index in properties.get("GlobalSecondaryIndexes", []):
        assert "request" not in index["Projection"].get("NonKeyAttributes", [])
    assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == (
        "RetainExceptOnCreate",
        "Retain",
    )
