"""The calls that ours makes, with the same libraries and clients, all at once, and not one check.

It is the lower bound: making these calls with boto3 and httpx costs at least this.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import httpx

from notifier.entrypoints.environment import AWS, MAX_THREADS

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef

LEDGER, IDENTITIES = os.environ["LEDGER_TABLE"], os.environ["IDENTITIES_TABLE"]

dynamodb = boto3.client("dynamodb", config=AWS)
sqs = boto3.client("sqs", config=AWS)
bot = json.loads(
    boto3.client("secretsmanager", config=AWS).get_secret_value(
        SecretId=os.environ["BOTS_SECRET_ARN"]
    )["SecretString"]
)["default"]
blip = httpx.Client(
    base_url=bot["base_url"],
    headers={"Authorization": bot["key"], "Content-Type": "application/json"},
    timeout=10,
    limits=httpx.Limits(max_connections=MAX_THREADS, max_keepalive_connections=MAX_THREADS),
)
threads = ThreadPoolExecutor(MAX_THREADS)


def typed(value: object) -> "AttributeValueTypeDef":
    """Return a value as DynamoDB has it."""
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, list):
        return {"L": [typed(one) for one in value]}
    if isinstance(value, dict):
        return {"M": {name: typed(one) for name, one in value.items()}}
    return {"NULL": True} if value is None else {"N": str(value)}


def update(table: str, key: str, **values: object) -> None:
    """Write some attributes of an item."""
    given = {f":{name}": typed(value) for name, value in values.items()}
    dynamodb.update_item(
        TableName=table,
        Key={"key": {"S": key}},
        UpdateExpression="SET " + ", ".join(f"#{name} = :{name}" for name in values),
        ExpressionAttributeNames={f"#{name}": name for name in values},
        ExpressionAttributeValues=given,
        ReturnValues="ALL_NEW",
    )


def reserve(plan: str) -> None:
    """Write the bot's item, as a reservation of slots does."""
    update(IDENTITIES, "bot:default", **{f"next_{plan}_at": time.time_ns() // 1000})


def claim(request: dict[str, Any], body: str, status: str) -> None:
    """Put all that the ledger holds of a notification there."""
    now = time.time_ns() // 1_000_000
    update(
        LEDGER,
        request["id"],
        status=status,
        token=uuid4().hex,
        lease_until=now + 32_000,
        updated_at=now,
        id=request["id"],
        bot="default",
        content_hash=uuid4().hex * 2,
        request=body,
        template=request["template"]["name"],
        category="UTILITY",
        recipient=request["to"][-4:],
        metadata=request["metadata"],
        correlation_id=None,
        created_at=now,
        generation=1,
        attempts=1,
        redrives=0,
        expires_at=now // 1000,
    )


def look_up(request: dict[str, Any]) -> str:
    """Ask for an identity, under a lease, and keep it."""
    phone, now = request["to"], time.time_ns() // 1_000_000
    update(IDENTITIES, f"default/{phone}", token=uuid4().hex, lease_until=now, expires_at=now)
    answer = blip.post(
        "/commands",
        json={
            "id": str(uuid4()),
            "to": "postmaster@wa.gw.msging.net",
            "method": "get",
            "uri": f"lime://wa.gw.msging.net/accounts/{phone}",
        },
    ).json()
    address: str = answer["resource"]["alternativeAccount"]
    update(IDENTITIES, f"default/{phone}", address=address, good_until=now, expires_at=now)
    update(LEDGER, request["id"], status="sending", lease_until=now, updated_at=now)
    return address


def send(request: dict[str, Any], body: str, address: str) -> None:
    """Send the template, record the result; put refused requests on the dead-letter queue."""
    template = request["template"]
    parameters = [{"type": "text", "text": text} for text in template["body"]]
    answer = blip.post(
        "/messages",
        json={
            "id": request["id"],
            "to": address,
            "type": "application/json",
            "content": {
                "type": "template",
                "template": {
                    "namespace": bot["namespace"],
                    "name": template["name"],
                    "language": {"code": template["language"], "policy": "deterministic"},
                    "components": [{"type": "body", "parameters": parameters}],
                },
            },
        },
    )
    status = "sent" if answer.is_success else "rejected"
    if not answer.is_success:
        sqs.send_message(QueueUrl=os.environ["DEAD_LETTERS_QUEUE_URL"], MessageBody=body)
    now = time.time_ns() // 1_000_000
    timeline = [[status, 1, now, None]]
    update(LEDGER, request["id"], status=status, updated_at=now, timeline=timeline)


def deliver(body: str, identities: dict[str, str]) -> None:
    """Deliver one request."""
    request = json.loads(body)
    address = identities.get(request["to"])
    claim(request, body, "claimed" if address is None else "sending")
    send(request, body, look_up(request) if address is None else address)


def handler(event: dict[str, Any], _: object) -> dict[str, Any]:
    """Deliver one batch."""
    bodies = [record["body"] for record in event["Records"]]
    phones = [json.loads(body)["to"] for body in bodies]
    templates = [json.loads(body)["template"]["name"] for body in bodies]
    identities: dict[str, str] = {}
    for start in range(0, len(bodies), MAX_THREADS):
        some = bodies[start : start + MAX_THREADS]
        keys = ["bot:default", *(f"default/{phone}" for phone in phones[start:][:MAX_THREADS])]
        keys += {f"template:default/{name}" for name in templates[start:][:MAX_THREADS]}
        answer = dynamodb.batch_get_item(
            RequestItems={IDENTITIES: {"Keys": [{"key": {"S": key}} for key in keys]}}
        )
        for item in answer["Responses"][IDENTITIES]:
            if "address" in item:
                identities[item["key"]["S"].partition("/")[2]] = item["address"]["S"]
        reserved = [threads.submit(reserve, "messages")]
        if not identities:
            reserved.append(threads.submit(reserve, "commands"))
        list(threads.map(lambda body: deliver(body, identities), some))
        for each in reserved:
            each.result()
    return {"batchItemFailures": []}
