"""Two stages in one account share nothing: what goes wrong in one is published of that one only."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.local.machine import free_ports, wait_until
from tests.local.stack import LocalStack

WRONG_KEY = "Key d3Jvbmc6d3Jvbmc="


@pytest.fixture(scope="module")
def production() -> Iterator[LocalStack]:
    with LocalStack(port_base=free_ports(2)) as stack:
        yield stack


@pytest.fixture(scope="module")
def dev(production: LocalStack) -> Iterator[LocalStack]:
    assert production.ministack
    stage = LocalStack(
        port_base=free_ports(2), aws_url=production.aws.url, name="blip-notifier-dev"
    )
    with stage, stage.metrics(production.ministack.log):
        yield stage


@pytest.fixture
def told(production: LocalStack) -> Iterator[list[dict[str, Any]]]:
    """Collect the status events of both stages, which go to one bus."""
    aws = production.aws
    events, queue = aws.client("events"), aws.sqs.create_queue(QueueName="both")["QueueUrl"]
    attributes = aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    events.put_rule(Name="both", EventPattern=json.dumps({"source": ["blip-notifier"]}))
    events.put_targets(
        Rule="both", Targets=[{"Id": "queue", "Arn": attributes["Attributes"]["QueueArn"]}]
    )
    heard: list[dict[str, Any]] = []

    class Heard(list[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            answer = aws.sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)
            for message in answer.get("Messages", []):
                heard.append(json.loads(message["Body"])["detail"])
                aws.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            return iter(heard)

    yield Heard()
    events.remove_targets(Rule="both", Ids=["queue"])
    events.delete_rule(Name="both")
    aws.sqs.delete_queue(QueueUrl=queue)


def publish(stack: LocalStack, id_: str) -> None:
    request = {
        "id": id_,
        "to": "+5531900001001",
        "template": {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981"]},
    }
    stack.aws.sqs.send_message(QueueUrl=stack.requests_queue, MessageBody=json.dumps(request))


def test_a_wrong_key_of_one_stage_is_told_of_that_stage_only(
    production: LocalStack, dev: LocalStack, told: list[dict[str, Any]]
) -> None:
    secret = dev.resources["BotsSecret"]
    bots = json.loads(dev.aws.secrets.get_secret_value(SecretId=secret)["SecretString"])
    bots["default"]["key"] = WRONG_KEY
    dev.aws.secrets.put_secret_value(SecretId=secret, SecretString=json.dumps(bots))

    publish(dev, "of-dev")
    publish(production, "of-production")
    wait_until(lambda: "BotMisconfiguredAlarm" in dev.ringing(), "the alarm of the broken stage")
    wait_until(
        lambda: any(event["status"] == "consumed" for event in told), "the other stage to send"
    )

    assert production.ringing() == {}
    assert {(event["id"], event["stack"]) for event in told} == {("of-production", production.name)}


def test_an_end_in_one_stage_says_which(
    dev: LocalStack, production: LocalStack, told: list[dict[str, Any]]
) -> None:
    dev.aws.sqs.send_message(
        QueueUrl=dev.requests_queue, MessageBody=json.dumps({"id": "broken", "to": "+5531"})
    )

    wait_until(lambda: any(event["id"] == "broken" for event in told), "its end to be told")
    wait_until(lambda: "DeadLettersAlarm" in dev.ringing(), "its alarm")

    assert {event["stack"] for event in told} == {dev.name}
    assert production.ringing() == {}
