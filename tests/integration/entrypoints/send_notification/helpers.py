"""What several tests of the function do and read."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from notifier.entrypoints.send_notification import SendNotification
from tests.integration.conftest import Record, Stack


def phone(number: int) -> str:
    """Return one of many numbers, whose identity has the number's own digits."""
    return f"+551198888{7700 + number:04}"


def know(stack: Stack, *phones: str) -> None:
    """Store these numbers' identities, as if they had been looked up long ago."""
    for number in phones:
        stack.aws.dynamodb.put_item(
            TableName="identities",
            Item={
                "key": {"S": f"default/{number}"},
                "address": {"S": stack.blip.know(number)},
                "good_until": {"N": str(round((time.time() + 400_000) * 1000))},
                "expires_at": {"N": str(round(time.time() + 400_000))},
            },
        )


def statuses(stack: Stack) -> dict[str, str]:
    """Return the ledger's statuses by the producer's id."""
    ledger = stack.aws.ledger()
    return {item["id"]: item["status"] for item in ledger if "refusals" not in item}


def visibility_timeouts(stack: Stack) -> list[int]:
    """Return the visibility timeouts that were set since the last call of this function."""
    seconds = [
        entry["VisibilityTimeout"]
        for name, parameters in stack.aws.calls
        if name == "ChangeMessageVisibilityBatch"
        for entry in parameters["Entries"]
    ]
    stack.aws.calls.clear()
    return seconds


def in_parallel(stack: Stack, *batches: list[Record]) -> list[str]:
    """Hand each batch to a sandbox of its own, all at once. Return the bodies that return."""
    functions = [stack.sandbox() for _ in batches]
    start = threading.Barrier(len(batches))

    def run(function: SendNotification, batch: list[Record]) -> list[str]:
        start.wait()
        return stack.handle(batch, function=function)

    with ThreadPoolExecutor(len(batches)) as threads:
        return [body for some in threads.map(run, functions, batches) for body in some]
