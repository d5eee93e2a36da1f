"""What one would write from the documentation: the handler that ours is measured against.

Powertools' batch processor and its idempotency, as its documentation combines them, with the
producer's id as the idempotency key; one record after the other; httpx. The same duties: look-ups
cached in a table for six days, what BLiP refuses for good on a dead-letter queue with its reason, a
log line per notification. What else goes wrong raises, and the record comes back.
"""

import json
import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import boto3
import httpx
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    process_partial_response,
)
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    idempotent_function,
)
from pydantic import BaseModel, Field, ValidationError

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

IDENTITY_SECONDS = int(timedelta(days=6).total_seconds())
PERMANENT = {400, 404, 422}

logger = Logger(service="textbook")
metrics = Metrics(service="textbook", namespace="Textbook")
processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)
dynamodb = boto3.client("dynamodb")
sqs = boto3.client("sqs")
persistence = DynamoDBPersistenceLayer(table_name=os.environ["IDEMPOTENCY_TABLE"])
idempotency = IdempotencyConfig(
    event_key_jmespath="powertools_json(body).id", raise_on_no_idempotency_key=True
)
bot = json.loads(
    boto3.client("secretsmanager").get_secret_value(SecretId=os.environ["BOTS_SECRET_ARN"])[
        "SecretString"
    ]
)["default"]
blip = httpx.Client(
    base_url=bot["base_url"],
    headers={"Authorization": bot["key"], "Content-Type": "application/json"},
    timeout=10,
)


class Template(BaseModel):
    """An approved template with its values."""

    name: str
    language: str
    body: list[str] = []


class Request(BaseModel):
    """What a producer asks for."""

    id: str
    to: Annotated[str, Field(pattern=r"^\+\d{8,15}$")]
    template: Template


class Undeliverable(Exception):
    """It will not work the next time either."""


def identity_of(phone: str) -> str:
    """Return the WhatsApp identity: from the table, else from BLiP's look-up."""
    table, key = os.environ["TEXTBOOK_IDENTITIES_TABLE"], {"key": {"S": phone}}
    item = dynamodb.get_item(TableName=table, Key=key).get("Item")
    if item and int(item["expires_at"]["N"]) > time.time():
        return item["address"]["S"]
    answer = blip.post(
        "/commands",
        json={
            "id": str(uuid4()),
            "to": "postmaster@wa.gw.msging.net",
            "method": "get",
            "uri": f"lime://wa.gw.msging.net/accounts/{phone}",
        },
    )
    answer.raise_for_status()
    found = answer.json()
    if found["status"] != "success":
        raise Undeliverable(found["reason"]["description"])
    resource = found["resource"]
    address: str = resource.get("alternativeAccount") or resource["identity"]
    dynamodb.put_item(
        TableName=table,
        Item={
            **key,
            "address": {"S": address},
            "expires_at": {"N": str(int(time.time()) + IDENTITY_SECONDS)},
        },
    )
    return address


def send(request: Request) -> None:
    """Send the template."""
    template = request.template
    parameters = [{"type": "text", "text": text} for text in template.body]
    answer = blip.post(
        "/messages",
        json={
            "id": str(uuid4()),
            "to": identity_of(request.to),
            "type": "application/json",
            "content": {
                "type": "template",
                "template": {
                    "namespace": bot["namespace"],
                    "name": template.name,
                    "language": {"code": template.language, "policy": "deterministic"},
                    "components": [{"type": "body", "parameters": parameters}],
                },
            },
        },
    )
    if answer.status_code in PERMANENT:
        raise Undeliverable(f"HTTP {answer.status_code}: {answer.text}")
    answer.raise_for_status()


@idempotent_function(  # type: ignore[untyped-decorator]
    data_keyword_argument="record", config=idempotency, persistence_store=persistence
)
def deliver(record: SQSRecord) -> dict[str, str]:
    """Deliver one record."""
    try:
        request = Request.model_validate_json(record.body)
        send(request)
    except (ValidationError, Undeliverable) as problem:
        sqs.send_message(
            QueueUrl=os.environ["DEAD_LETTERS_QUEUE_URL"],
            MessageBody=record.body,
            MessageAttributes={"reason": {"DataType": "String", "StringValue": str(problem)}},
        )
        logger.warning("dead letter", extra={"record": record.message_id})
        metrics.add_metric("dead_letter", MetricUnit.Count, 1)
        return {"status": "rejected"}
    logger.info("sent", extra={"notification_id": request.id})
    metrics.add_metric("sent", MetricUnit.Count, 1)
    return {"status": "sent"}


def record_handler(record: SQSRecord) -> dict[str, str]:
    """Hand a record to `deliver` by the name that its idempotency goes by."""
    outcome: dict[str, str] = deliver(record=record)
    return outcome


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> Any:
    """Deliver one batch."""
    idempotency.register_lambda_context(context)
    return process_partial_response(
        event=event, record_handler=record_handler, processor=processor, context=context
    )
