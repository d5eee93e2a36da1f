"""Builds the function SyncTemplates: the bots' templates, from BLiP to the registry."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from notifier import telemetry
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.secrets import SecretsManagerBots
from notifier.aws.table import Table
from notifier.aws.template_events import EventBridgeTemplateChanges
from notifier.aws.templates import DynamoDbTemplates
from notifier.blip.client import BlipClient
from notifier.entrypoints.environment import AWS, MAX_THREADS, SystemClock, boto3
from notifier.settings import SyncTemplatesSettings, stack
from notifier.use_cases.send_notification.round import CALL_SECONDS
from notifier.use_cases.sync_templates import Syncing

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext


class SyncTemplates:
    """Takes the schedule's event, or an operator's.

    Attributes:
        close: ends the threads and connections, where several are built in one process.
    """

    def __init__(self, syncing: Syncing, meter: telemetry.Meter, close: Callable[[], None]) -> None:
        self._syncing = syncing
        self._meter = meter
        self.close = close

    def handle(self, context: "LambdaContext") -> dict[str, dict[str, int]]:
        """Sync every bot; return how many templates each of those has that were synced."""
        deadline = SystemClock.now() + context.get_remaining_time_in_millis() / 1000
        templates = self._syncing.sync(deadline)
        self._meter.flush()
        telemetry.count(["templates_synced"] * len(templates))
        return {"templates": templates}


def sync_templates(settings: SyncTemplatesSettings) -> SyncTemplates:
    """Build what the function needs."""
    clock = SystemClock()
    meter = telemetry.Meter()
    dynamodb = boto3.client("dynamodb", config=AWS)
    identities_table = Table(dynamodb, settings.identities_table)
    blip = BlipClient(1, CALL_SECONDS)
    threads = ThreadPoolExecutor(MAX_THREADS)
    syncing = Syncing(
        registry=DynamoDbTemplates(identities_table, clock.now),
        bot_states=DynamoDbBotStates(identities_table, clock.now),
        secrets=SecretsManagerBots(
            boto3.client("secretsmanager", config=AWS), settings.bots_secret_arn, clock.now
        ),
        blip=blip,
        changes=EventBridgeTemplateChanges(
            boto3.client("events", config=AWS), settings.event_bus, stack()
        ),
        meter=meter,
        clock=clock,
        threads=threads,
        cooldown_seconds=settings.cooldown_seconds,
    )

    def close() -> None:
        threads.shutdown()
        blip.close()

    return SyncTemplates(syncing, meter, close)
