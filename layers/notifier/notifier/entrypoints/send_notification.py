"""Builds the function SendNotification."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, Any

from notifier import telemetry
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.identities import DynamoDbIdentities
from notifier.aws.ledger import DynamoDbLedger
from notifier.aws.queues import (
    DeadLettersQueue,
    RequestsInFlight,
    RequestsQueue,
    queued_request,
)
from notifier.aws.receipts_ledger import DynamoDbReceiptsLedger
from notifier.aws.refusals import DynamoDbRefusals
from notifier.aws.secrets import SecretsManagerBots
from notifier.aws.table import Table
from notifier.aws.templates import DynamoDbTemplates
from notifier.aws.waiting_ledger import DynamoDbWaitingLedger
from notifier.blip.client import BlipClient
from notifier.domain.templates import Category
from notifier.entrypoints.environment import AWS, MAX_THREADS, BatchCrashed, SystemClock, boto3
from notifier.settings import SendNotificationSettings
from notifier.use_cases.record_receipt import Receipts
from notifier.use_cases.send_notification.batch import SendNotifications
from notifier.use_cases.send_notification.outcomes import Outcome, Result
from notifier.use_cases.send_notification.round import CALL_SECONDS
from notifier.use_cases.send_notification.waits import Policy, Waits

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext


_SENT_AS: dict[Category | None, str] = {
    Category.MARKETING: "sent_marketing",
    Category.UTILITY: "sent_utility",
    Category.AUTHENTICATION: "sent_authentication",
    None: "sent_uncategorized",
}


class SendNotification:
    """Takes the event of the requests queue and answers with what has to come back.

    Attributes:
        close: ends the threads and connections, where several are built in one process.
    """

    def __init__(
        self,
        delivery: SendNotifications,
        requests: RequestsQueue,
        meter: telemetry.Meter,
        close: Callable[[], None],
    ) -> None:
        self._delivery = delivery
        self._requests = requests
        self._meter = meter
        self.close = close

    def handle(self, event: Mapping[str, Any], context: "LambdaContext") -> dict[str, Any]:
        """Deliver a batch. A record that is not named in the answer is done, and SQS deletes it.

        Raises:
            BatchCrashed: not one record could be delivered, for a fault of ours or of AWS.
        """
        deadline = SystemClock.now() + context.get_remaining_time_in_millis() / 1000
        results = self._delivery.deliver(
            [queued_request(record) for record in event["Records"]], deadline
        )
        waiting = [
            (result.queued, result.retry_in) for result in results if result.retry_in is not None
        ]
        self._requests.change_visibility(waiting)
        self._meter.flush()
        _count(results)
        if results and all(result.outcome is Outcome.CRASHED for result in results):
            raise BatchCrashed
        return {
            "batchItemFailures": [{"itemIdentifier": queued.record_id} for queued, _ in waiting]
        }


def _count(results: list[Result]) -> None:
    """Count each outcome, and dead letters by reason."""
    telemetry.count(result.outcome for result in results)
    telemetry.count_by(
        "dead_letter_by_reason",
        "reason",
        (result.reason for result in results if result.reason),
    )
    telemetry.count(
        _SENT_AS[result.notification.category]
        for result in results
        if result.outcome is Outcome.SENT and result.notification
    )


def send_notification(settings: SendNotificationSettings) -> SendNotification:
    """Build what the function needs."""
    clock = SystemClock()
    meter = telemetry.Meter()
    dynamodb = boto3.client("dynamodb", config=AWS)
    sqs = boto3.client("sqs", config=AWS)
    secrets_manager = boto3.client("secretsmanager", config=AWS)
    ledger_table = Table(dynamodb, settings.ledger_table)
    identities_table = Table(dynamodb, settings.identities_table)
    templates = DynamoDbTemplates(identities_table, clock.now)
    identities = DynamoDbIdentities(
        identities_table,
        templates=templates,
        now=clock.now,
        ttl_seconds=settings.identity_ttl_seconds,
        negative_ttl_seconds=settings.identity_negative_ttl_seconds,
    )
    bot_states = DynamoDbBotStates(identities_table, clock.now)
    requests = RequestsQueue(sqs, settings.requests_queue_url)
    dead_letters = DeadLettersQueue(sqs, settings.dead_letters_queue_url, clock.now)
    blip = BlipClient(MAX_THREADS, CALL_SECONDS)
    threads = ThreadPoolExecutor(MAX_THREADS)
    delivery = SendNotifications(
        ledger=DynamoDbLedger(ledger_table, clock.now),
        refusals=DynamoDbRefusals(ledger_table, clock.now),
        identities=identities,
        bot_states=bot_states,
        secrets=SecretsManagerBots(secrets_manager, settings.bots_secret_arn, clock.now),
        blip=blip,
        registry=templates,
        dead_letters=dead_letters,
        receipts=Receipts(
            ledger=DynamoDbReceiptsLedger(ledger_table, clock.now),
            waiting=DynamoDbWaitingLedger(ledger_table, clock.now),
            identities=identities,
            bot_states=bot_states,
            templates=templates,
            dead_letters=dead_letters,
            meter=meter,
            now=clock.now,
        ),
        in_flight=RequestsInFlight(sqs, settings.requests_queue_url, clock.now),
        meter=meter,
        clock=clock,
        threads=threads,
        max_threads=MAX_THREADS,
        waits=Waits(_policy(settings)),
    )

    def close() -> None:
        threads.shutdown()
        blip.close()

    return SendNotification(delivery, requests, meter, close)


def _policy(settings: SendNotificationSettings) -> Policy:
    return Policy(
        cooldown_seconds=settings.cooldown_seconds,
        breaker_wait_seconds=settings.breaker_wait_seconds,
        backoff_base_seconds=settings.backoff_base_seconds,
        backoff_max_seconds=settings.backoff_max_seconds,
        settle_window_seconds=settings.settle_window_seconds,
        max_attempts=settings.max_attempts,
        max_wait_seconds=settings.max_wait_seconds,
        maximum_concurrency=settings.maximum_concurrency,
        allowed_recipients=tuple(settings.allowed_recipients.split(",")),
        ledger_restored_at=datetime.fromisoformat(settings.ledger_restored_at).timestamp(),
    )
