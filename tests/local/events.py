"""Status events of the local stack as JSON, one on each line, until Ctrl-C.

They come as a producer's application gets them: by a rule on the event bus, on a queue of its own.
"""

import signal

if __name__ == "__main__":
    # The imports take a moment, in which Ctrl-C would show a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

if __name__ == "__main__":
    # The package is installed nowhere: its place is the layer.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "layers/notifier"))

from tests.local.aws import Aws
from tests.local.producer import running_aws

INTERRUPTED = 130
WAIT_SECONDS = 2  # of one call; an interruption is noticed after it


class Heard:
    """The details of all status events since it began to listen.

    Attributes:
        details: in the order in which they were published.
    """

    def __init__(self, aws: Aws, queue: str) -> None:
        self._aws = aws
        self._queue = queue
        self.details: list[dict[str, Any]] = []

    def take(self, wait_seconds: int = 0) -> list[dict[str, Any]]:
        """Take up to ten events off the queue, as EventBridge writes them."""
        events = []
        for message in self._aws.sqs.receive_message(
            QueueUrl=self._queue, MaxNumberOfMessages=10, WaitTimeSeconds=wait_seconds
        ).get("Messages", []):
            events.append(json.loads(message["Body"]))
            self._aws.sqs.delete_message(
                QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"]
            )
        return events

    def collect(self) -> list[dict[str, Any]]:
        """Take what has come meanwhile; return the details of all there is."""
        while events := self.take():
            self.details += (event["detail"] for event in events)
        return self.details

    def statuses(self, notification_id: str) -> list[str]:
        """Return what was published of a notification, in order, each event once.

        By what was collected last.
        """
        own = {
            detail["event_id"]: detail["status"]
            for detail in self.details
            if detail["id"] == notification_id
        }
        return list(own.values())


@contextmanager
def listening(aws: Aws) -> Iterator[Heard]:
    """Listen to status events with a rule as producers are told to make it."""
    events, name = aws.client("events"), f"heard-{uuid4()}"
    queue = aws.sqs.create_queue(QueueName=name)["QueueUrl"]
    attributes = aws.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    pattern = {"source": ["blip-notifier"], "detail-type": ["Notification Status Changed"]}
    events.put_rule(Name=name, EventPattern=json.dumps(pattern))
    target = {"Id": "queue", "Arn": attributes["Attributes"]["QueueArn"]}
    events.put_targets(Rule=name, Targets=[target])
    try:
        yield Heard(aws, queue)
    finally:
        events.remove_targets(Rule=name, Ids=["queue"])
        events.delete_rule(Name=name)
        aws.sqs.delete_queue(QueueUrl=queue)


def main() -> int:
    """Print each event as it comes, until an interruption or the end of the local stack."""
    aws = running_aws(__doc__)
    try:
        with listening(aws) as heard:
            print("status events from now on, one on each line; Ctrl-C ends", file=sys.stderr)
            while True:
                for event in heard.take(WAIT_SECONDS):
                    print(json.dumps(event, ensure_ascii=False), flush=True)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    except (BotoCoreError, ClientError):
        print("the local stack has ended", file=sys.stderr)
        return 1
    return INTERRUPTED


if __name__ == "__main__":
    # A shell lets what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
