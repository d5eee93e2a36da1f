"""The product in the local stack, as the fault suite uses it: with other bots, and to be killed."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import batched
from typing import Any

from tests.faults.sandboxes import Killer
from tests.local.machine import HOST, STATE, free_ports
from tests.local.stack import SIMULATED_BOTS, LocalStack


@dataclass(frozen=True)
class Message:
    """What is put on the requests queue.

    Attributes:
        delay: after how many seconds it is seen.
    """

    body: str
    bot: str = "default"
    delay: int = 0


@contextmanager
def deployed(parameters: Mapping[str, str]) -> Iterator[LocalStack]:
    """Start a local stack, whose folder goes with it."""
    port = free_ports(2)
    with LocalStack(port_base=port, parameters=parameters) as stack:
        yield stack
    shutil.rmtree(STATE / str(port))


@contextmanager
def killable_stack(parameters: Mapping[str, str]) -> Iterator[tuple[LocalStack, Killer]]:
    """Start a local stack whose sandboxes can be killed at any call out."""
    port = free_ports(4)
    aws, blip = port + 2, port + 3
    stack = LocalStack(port_base=port, parameters=parameters, functions_call=f"http://{HOST}:{aws}")
    passed_on = {aws: f"http://{HOST}:{port}", blip: f"http://{HOST}:{port + 1}"}
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, stack.home)
        killer = cleanup.enter_context(Killer(stack.home, passed_on))
        cleanup.enter_context(stack)
        change_bots(stack, base_url=f"http://{HOST}:{blip}")
        yield stack, killer


def change_bots(stack: LocalStack, **changes: Any) -> None:
    """Change the entries of all bots in their secret."""
    secret = {"SecretId": stack.resources["BotsSecret"]}
    bots = json.loads(stack.aws.secrets.get_secret_value(**secret)["SecretString"])
    text = json.dumps({name: bot | changes for name, bot in bots.items()})
    stack.aws.secrets.put_secret_value(**secret, SecretString=text)


def publish(stack: LocalStack, messages: Sequence[Message]) -> None:
    """Put messages on the requests queue."""

    def send(batch: Sequence[Message]) -> None:
        answer = stack.aws.sqs.send_message_batch(
            QueueUrl=stack.requests_queue,
            Entries=[
                {
                    "Id": str(number),
                    "MessageBody": message.body,
                    "MessageGroupId": message.bot,
                    "DelaySeconds": message.delay,
                }
                for number, message in enumerate(batch)
            ],
        )
        assert not answer.get("Failed")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(send, batched(messages, 10, strict=False)))


def know(stack: LocalStack, phone: str) -> None:
    """Store a recipient's identity for the bot `default`."""
    assert stack.simulator
    good_until = time.time() + 100_000
    stack.aws.dynamodb.put_item(
        TableName=stack.identities_table,
        Item={
            "key": {"S": f"default/{phone}"},
            "address": {"S": stack.simulator.know(phone, SIMULATED_BOTS["default"])},
            "good_until": {"N": str(round(good_until * 1000))},
            "expires_at": {"N": str(round(good_until))},
        },
    )


def show_again_after(stack: LocalStack, seconds: int) -> None:
    """Set how soon the queues deliver again what a sandbox has received and not answered."""
    for queue in (stack.requests_queue, stack.resources["ReceiptsQueue"]):
        stack.aws.sqs.set_queue_attributes(
            QueueUrl=queue, Attributes={"VisibilityTimeout": str(seconds)}
        )


def is_quiet(stack: LocalStack) -> bool:
    """Return whether nothing is on its way any more."""
    return not depth(stack, stack.requests_queue) and receipts_are_quiet(stack)


def receipts_are_quiet(stack: LocalStack) -> bool:
    """Return whether no receipt is on its way any more."""
    waiting = stack.simulator and stack.simulator.statistics()["receipts"]["waiting"]
    return not waiting and not depth(stack, stack.resources["ReceiptsQueue"])


def depth(stack: LocalStack, queue: str) -> int:
    """Return the number of messages on a queue, in flight or not."""
    attributes = stack.aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])
    return sum(
        int(count)
        for name, count in attributes["Attributes"].items()
        if name.startswith("ApproximateNumber")
    )


def ledger_items(stack: LocalStack) -> Iterator[dict[str, Any]]:
    """Return all that the ledger holds."""
    pages = stack.aws.dynamodb.get_paginator("scan").paginate(TableName=stack.ledger_table)
    for page in pages:
        yield from page["Items"]
