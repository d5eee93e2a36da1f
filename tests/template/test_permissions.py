"""What each role may do: exact actions on exact resources, and no more."""

from collections import defaultdict
from typing import Any

import pytest

from tests.template.transformed import Template, as_list, logical_id

EVENT_BUS = (
    "arn:${AWS::Partition}:events:${AWS::Region}:${AWS::AccountId}:event-bus/${EventBusName}"
)
POLLS = "${LedgerTable.Arn}/index/polls"
WAITS = "${LedgerTable.Arn}/index/waits"
STREAM = "LedgerTable.StreamArn"
STREAMS = "${LedgerTable.Arn}/stream/*"
# What is no resource of its own in the template.
ARNS = {EVENT_BUS, POLLS, WAITS, STREAMS}

ROLES = {
    "SendNotificationRole": {
        "RequestsQueue": {
            "sqs:ReceiveMessage",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ChangeMessageVisibility",
        },
        "DeadLettersQueue": {"sqs:SendMessage"},
        "LedgerTable": {"dynamodb:GetItem", "dynamodb:UpdateItem"},
        "IdentitiesTable": {
            "dynamodb:GetItem",
            "dynamodb:BatchGetItem",
            "dynamodb:UpdateItem",
            "dynamodb:DeleteItem",
        },
        "BotsSecret": {"secretsmanager:GetSecretValue"},
        "SendNotificationLogs": {"logs:CreateLogStream", "logs:PutLogEvents"},
    },
    "ReceiveReceiptRole": {
        "ReceiptsQueue": {"sqs:SendMessage"},
        "WebhookSecret": {"secretsmanager:GetSecretValue"},
        "ReceiveReceiptLogs": {"logs:CreateLogStream", "logs:PutLogEvents"},
    },
    "RecordReceiptRole": {
        "ReceiptsQueue": {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"},
        "DeadLettersQueue": {"sqs:SendMessage"},
        "LedgerTable": {"dynamodb:GetItem", "dynamodb:UpdateItem"},
        "IdentitiesTable": {"dynamodb:GetItem", "dynamodb:UpdateItem"},
        "RecordReceiptLogs": {"logs:CreateLogStream", "logs:PutLogEvents"},
    },
    "PollReceiptsRole": {
        "ReceiptsQueue": {"sqs:SendMessage"},
        "LedgerTable": {"dynamodb:UpdateItem"},
        POLLS: {"dynamodb:Query"},
        "IdentitiesTable": {"dynamodb:GetItem", "dynamodb:UpdateItem"},
        "BotsSecret": {"secretsmanager:GetSecretValue"},
        "PollReceiptsLogs": {"logs:CreateLogStream", "logs:PutLogEvents"},
    },
    "SyncTemplatesRole": {
        "IdentitiesTable": {"dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:UpdateItem"},
        EVENT_BUS: {"events:PutEvents"},
        "BotsSecret": {"secretsmanager:GetSecretValue"},
        "SyncTemplatesLogs": {"logs:CreateLogStream", "logs:PutLogEvents"},
    },
    "WakeNotificationsRole": {
        "RequestsQueue": {"sqs:SendMessage"},
        "LedgerTable": {"dynamodb:BatchGetItem", "dynamodb:UpdateItem"},
        WAITS: {"dynamodb:Query"},
        "WakeNotificationsLogs": {"logs:CreateLogStream", "logs:PutLogEvents"},
    },
    "GetNotificationRole": {
        "LedgerTable": {"dynamodb:GetItem", "dynamodb:UpdateItem"},
        "GetNotificationLogs": {"logs:CreateLogStream", "logs:PutLogEvents"},
    },
    "PublishStatusEventsRole": {
        STREAM: {
            "dynamodb:GetRecords",
            "dynamodb:GetShardIterator",
            "dynamodb:DescribeStream",
        },
        STREAMS: {"dynamodb:ListStreams"},
        EVENT_BUS: {"events:PutEvents"},
        "UnpublishedQueue": {"sqs:SendMessage"},
        "PublishStatusEventsLogs": {"logs:CreateLogStream", "logs:PutLogEvents"},
    },
    "ForgetRecipientRole": {
        "LedgerTable": {"dynamodb:Scan", "dynamodb:UpdateItem"},
        "IdentitiesTable": {"dynamodb:GetItem", "dynamodb:DeleteItem", "dynamodb:UpdateItem"},
        "DeadLettersQueue": {
            "sqs:ReceiveMessage",
            "sqs:DeleteMessage",
            "sqs:ChangeMessageVisibility",
        },
        "ReceiptsDeadLettersQueue": {
            "sqs:ReceiveMessage",
            "sqs:DeleteMessage",
            "sqs:ChangeMessageVisibility",
        },
        "ForgetRecipientLogs": {"logs:CreateLogStream", "logs:PutLogEvents"},
    },
}


def target(resource: Any) -> str:
    """Name what a statement is about: a resource of the stack, or an ARN made of one."""
    match resource:
        case {"Fn::Sub": str(arn)} if arn in ARNS:
            return arn
        case {"Fn::GetAtt": ["LedgerTable", "StreamArn"]}:
            return STREAM
        case _:
            return logical_id(resource)


def statements(template: Template, role: str) -> list[dict[str, Any]]:
    return [
        statement
        for policy in template.properties(role)["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
    ]


def test_every_role_is_looked_at(template: Template) -> None:
    assert set(template.resources("AWS::IAM::Role")) == set(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_this_and_nothing_else(template: Template, role: str) -> None:
    allowed: dict[str, set[str]] = defaultdict(set)
    for statement in statements(template, role):
        assert statement.keys() <= {"Sid", "Effect", "Action", "Resource"}
        assert statement["Effect"] == "Allow"
        for resource in as_list(statement["Resource"]):
            allowed[target(resource)] |= set(as_list(statement["Action"]))

    assert allowed == ROLES[role]


def test_no_role_of_ours_holds_a_wildcard_or_a_managed_policy(template: Template) -> None:
    roles = template.resources("AWS::IAM::Role")
    assert roles

    for role in roles:
        assert "ManagedPolicyArns" not in template.properties(role)
        for statement in statements(template, role):
            for action in as_list(statement["Action"]):
                assert "*" not in action
            for resource in as_list(statement["Resource"]):
                assert target(resource) in {STREAM, *ARNS, *template.transformed["Resources"]}


def test_every_function_has_a_role_of_its_own_that_only_lambda_takes(template: Template) -> None:
    functions = template.resources("AWS::Lambda::Function")
    roles = [logical_id(function["Properties"]["Role"]) for function in functions.values()]

    assert sorted(roles) == sorted(template.resources("AWS::IAM::Role"))
    for role in roles:
        trust = template.properties(role)["AssumeRolePolicyDocument"]["Statement"]
        assert trust == [
            {
                "Effect": "Allow",
                "Principal": {"Service": "lambda.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ]


def test_a_function_may_write_to_its_own_logs_only(template: Template) -> None:
    for function in template.resources("AWS::Lambda::Function").values():
        group = logical_id(function["Properties"]["LoggingConfig"]["LogGroup"])
        writable = [
            logical_id(resource)
            for statement in statements(template, logical_id(function["Properties"]["Role"]))
            if "logs:PutLogEvents" in statement["Action"]
            for resource in as_list(statement["Resource"])
        ]
        assert writable == [group]


def test_one_function_alone_publishes_status_events(template: Template) -> None:
    """All others change the ledger, and no outage of the bus delays them."""
    roles = template.resources("AWS::IAM::Role")

    # Changes of templates have nothing to do with the ledger.
    assert {
        role
        for role in roles
        for statement in statements(template, role)
        if "events:PutEvents" in as_list(statement["Action"])
    } == {"PublishStatusEventsRole", "SyncTemplatesRole"}


def test_only_blip_gets_in_without_a_signature(template: Template) -> None:
    """It cannot sign: its receipts carry a secret, which the function checks."""
    routes = {
        route["Properties"]["RouteKey"]: route["Properties"].get("AuthorizationType")
        for route in template.resources("AWS::ApiGatewayV2::Route").values()
    }

    assert routes == {
        "POST /receipts": None,
        "GET /notifications/{id}": "AWS_IAM",
        "DELETE /notifications/{id}": "AWS_IAM",
    }


def test_the_api_may_call_each_function_for_its_own_routes_only(template: Template) -> None:
    permissions = [
        permission["Properties"]
        for permission in template.resources("AWS::Lambda::Permission").values()
        if permission["Properties"]["Principal"] == "apigateway.amazonaws.com"
    ]

    assert {
        logical_id(template.properties(logical_id(p["FunctionName"]))["FunctionName"]): p[
            "SourceArn"
        ]["Fn::Sub"].partition("${HttpApi}")[2]
        for p in permissions
    } == {
        "ReceiveReceiptFunction": "/*/POST/receipts",
        "GetNotificationFunction": "/*/*/notifications/*",
    }
