"""Builds the function PollReceipts: asks BLiP's history for bots without a webhook."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from aws_lambda_powertools.metrics import MetricUnit

from notifier import telemetry
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.queues import ReceiptsQueue
from notifier.aws.receipts_ledger import DynamoDbReceiptsLedger
from notifier.aws.secrets import SecretsManagerBots
from notifier.aws.table import Table
from notifier.blip.client import BlipClient
from notifier.entrypoints.environment import AWS, SystemClock, boto3
from notifier.settings import PollReceiptsSettings
from notifier.use_cases.poll_receipts import CONCURRENCY, Polling
from notifier.use_cases.send_notification.round import CALL_SECONDS

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext


class PollReceipts:
    """Takes the schedule's event.

    Attributes:
        close: ends the threads and connections, where several are built in one process.
    """

    def __init__(self, polling: Polling, close: Callable[[], None]) -> None:
        self._polling = polling
        self.close = close

    def handle(self, context: "LambdaContext") -> dict[str, int]:
        """Ask for as many as time allows; return how many were asked for."""
        deadline = SystemClock.now() + context.get_remaining_time_in_millis() / 1000
        polled = self._polling.poll(deadline)
        telemetry.count(["receipts_polled"] * polled.asked)
        if polled.late_seconds is not None:
            telemetry.metrics.add_metric("receipts_late", MetricUnit.Seconds, polled.late_seconds)
        return {"asked": polled.asked}


def poll_receipts(settings: PollReceiptsSettings) -> PollReceipts:
    """Build what the function needs."""
    clock = SystemClock()
    dynamodb = boto3.client("dynamodb", config=AWS)
    blip = BlipClient(CONCURRENCY, CALL_SECONDS)
    threads = ThreadPoolExecutor(CONCURRENCY)
    polling = Polling(
        ledger=DynamoDbReceiptsLedger(Table(dynamodb, settings.ledger_table), clock.now),
        bot_states=DynamoDbBotStates(Table(dynamodb, settings.identities_table), clock.now),
        secrets=SecretsManagerBots(
            boto3.client("secretsmanager", config=AWS), settings.bots_secret_arn, clock.now
        ),
        blip=blip,
        receipts=ReceiptsQueue(boto3.client("sqs", config=AWS), settings.receipts_queue_url),
        clock=clock,
        threads=threads,
        cooldown_seconds=settings.cooldown_seconds,
    )

    def close() -> None:
        threads.shutdown()
        blip.close()

    return PollReceipts(polling, close)
