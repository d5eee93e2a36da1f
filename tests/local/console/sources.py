"""The stack as the console reaches it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.local.blip import Simulator
from tests.local.events import Heard


@dataclass(frozen=True, slots=True)
class Sources:
    """The stack as the console reaches it.

    Attributes:
        clients: boto3's, by service: sqs, dynamodb and dynamodbstreams.
        resources: what AWS calls the resources, by their logical ids.
        stream: the ARN of the ledger's stream.
        heard: the status events.
        simulator: the simulated BLiP; None if the stack has another one.
        bots: what the simulator calls the bots, by the names that requests use.
    """

    clients: Mapping[str, Any]
    resources: Mapping[str, str]
    stream: str
    heard: Heard
    simulator: Simulator | None
    bots: Mapping[str, str]

    def client(self, service: str) -> Any:
        """Return boto3's client of a service."""
        return self.clients[service]

    def physical_id(self, logical_id: str) -> str:
        """Return what AWS calls a resource."""
        return self.resources[logical_id]
