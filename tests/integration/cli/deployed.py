"""A deployed stack as commands reach it, over moto."""

from dataclasses import dataclass
from typing import Any

import boto3

from tests.integration.conftest import Aws


@dataclass
class Deployed:
    """The resources of a stack, as CloudFormation would name them."""

    aws: Aws
    webhook_secret: str = ""
    all_receipts: str = "false"
    page: int = 1000

    def client(self, service: str) -> Any:
        if service == "lambda":
            return self
        client = boto3.client(service)  # type: ignore[call-overload] # whichever is asked for
        client.meta.events.register(
            "provide-client-params.dynamodb.Scan",
            lambda params, **_: params | {"Limit": self.page},
        )
        return client

    def physical_id(self, logical_id: str) -> str:
        return {
            "LedgerTable": "ledger",
            "IdentitiesTable": "identities",
            "BotsSecret": self.aws.secret,
            "WebhookSecret": self.webhook_secret,
            "RequestsQueue": self.aws.requests_url,
            "DeadLettersQueue": self.aws.dead_letters_url,
            "PublishStatusEventsFunction": "publish-status-events",
        }[logical_id]

    def get_function_configuration(self, **function: str) -> Any:
        """Stand in for Lambda, which moto gives no function without an archive and a role."""
        assert function == {"FunctionName": "publish-status-events"}
        variables = {
            "EVENT_BUS": "default",
            "UNPUBLISHED_QUEUE_URL": "https://not-used-here",
            "PUBLISH_ALL_RECEIPTS": self.all_receipts,
            "POWERTOOLS_SERVICE_NAME": "blip-notifier",
        }
        return {"Environment": {"Variables": variables}}
