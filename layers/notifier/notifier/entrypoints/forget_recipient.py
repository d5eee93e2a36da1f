"""Builds the function ForgetRecipient, which operators invoke."""

from typing import TYPE_CHECKING, Any

from notifier.aws.identities import DynamoDbIdentities
from notifier.aws.notifications import DynamoDbNotifications
from notifier.aws.queues import DeadLettersQueue
from notifier.aws.table import Table
from notifier.aws.templates import DynamoDbTemplates
from notifier.entrypoints.environment import AWS, SystemClock, boto3
from notifier.settings import ForgetRecipientSettings
from notifier.use_cases.forget_recipient import Forgetting, OrderError, read_order

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext


class ForgetRecipient:
    """Takes an operator's order and answers with what was found and erased."""

    def __init__(self, forgetting: Forgetting) -> None:
        self._forgetting = forgetting

    def handle(self, event: object, context: "LambdaContext") -> dict[str, Any]:
        """Do what was asked for. An order that cannot be understood is no error of the function."""
        deadline = SystemClock.now() + context.get_remaining_time_in_millis() / 1000
        try:
            order = read_order(event)
        except OrderError as error:
            return {"error": str(error)}
        return self._forgetting.run(order, deadline).as_json()


def forget_recipient(settings: ForgetRecipientSettings) -> ForgetRecipient:
    """Build what the function needs."""
    clock = SystemClock()
    dynamodb = boto3.client("dynamodb", config=AWS)
    sqs = boto3.client("sqs", config=AWS)
    identities_table = Table(dynamodb, settings.identities_table)
    queues = (settings.dead_letters_queue_url, settings.receipts_dead_letters_queue_url)
    return ForgetRecipient(
        Forgetting(
            ledger=DynamoDbNotifications(Table(dynamodb, settings.ledger_table), clock.now),
            identities=DynamoDbIdentities(
                identities_table,
                templates=DynamoDbTemplates(identities_table, clock.now),
                now=clock.now,
                ttl_seconds=0,  # it looks no number up
                negative_ttl_seconds=0,
            ),
            queues=[DeadLettersQueue(sqs, url, clock.now) for url in queues],
            clock=clock,
        )
    )
