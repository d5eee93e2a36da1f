"""Builds the function WakeNotifications: waits that are over -> requests queue."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from aws_lambda_powertools.metrics import MetricUnit

from notifier import telemetry
from notifier.aws.queues import RequestsQueue
from notifier.aws.table import Table
from notifier.aws.waiting_ledger import SHARDS, DynamoDbWaitingLedger
from notifier.entrypoints.environment import AWS, BatchCrashed, SystemClock, boto3
from notifier.settings import WakeNotificationsSettings
from notifier.use_cases.wake_notifications import CONCURRENCY, Waking

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext


class WakeNotifications:
    """Takes the schedule's event.

    Attributes:
        close: ends the threads, where several are built in one process.
    """

    def __init__(self, waking: Waking, threads: ThreadPoolExecutor) -> None:
        self._waking = waking
        self.close = threads.shutdown

    def handle(self, context: "LambdaContext") -> dict[str, int]:
        """Wake as many as time allows; return how many.

        Raises:
            BatchCrashed: there were some, and not one could be woken.
        """
        deadline = SystemClock.now() + context.get_remaining_time_in_millis() / 1000
        woken = self._waking.wake(deadline)
        telemetry.count(["woken"] * woken.woken)
        telemetry.count(["wake_unreadable"] * woken.unreadable)
        telemetry.count(["crashed"] * woken.crashed)
        telemetry.metrics.add_metric("waits_late", MetricUnit.Seconds, woken.late_seconds)
        if woken.crashed and not woken.woken:
            raise BatchCrashed
        return {"woken": woken.woken}


def wake_notifications(settings: WakeNotificationsSettings) -> WakeNotifications:
    """Build what the function needs."""
    clock = SystemClock()
    threads = ThreadPoolExecutor(CONCURRENCY)
    waking = Waking(
        ledger=DynamoDbWaitingLedger(
            Table(boto3.client("dynamodb", config=AWS), settings.ledger_table), clock.now
        ),
        requests=RequestsQueue(boto3.client("sqs", config=AWS), settings.requests_queue_url),
        clock=clock,
        threads=threads,
        shards=SHARDS,
    )
    return WakeNotifications(waking, threads)
