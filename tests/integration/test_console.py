"""The local console's routes over moto and the simulator: what is shown, escaped, live, refused."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import boto3
import httpx
import pytest

from notifier.domain.notification import ledger_key
from tests.integration.conftest import Stack
from tests.integration.receipts_stack import ReceiptsStack
from tests.local.console import Console, Sources
from tests.local.events import Heard
from tests.support.builders import a_request

WAIT_SECONDS = 60


@dataclass
class Page:
    """The console of a stack, and a client that is no browser."""

    console: Console
    http: httpx.Client

    def get(self, path: str, **query: str) -> str:
        answer = self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, path: str, **form: str) -> httpx.Response:
        return self.http.post(path, data=form)


@pytest.fixture
def page(stack: Stack, receipts: ReceiptsStack) -> Iterator[Page]:
    aws = stack.aws
    heard = Heard(cast("Any", SimpleNamespace(sqs=aws.sqs)), receipts.listener_url)
    stream = aws.dynamodb.describe_table(TableName="ledger")["Table"]["LatestStreamArn"]
    sources = Sources(
        clients={"sqs": aws.sqs, "dynamodbstreams": boto3.client("dynamodbstreams")},
        resources={"RequestsQueue": aws.requests_url, "DeadLettersQueue": aws.dead_letters_url},
        stream=stream,
        heard=heard,
        simulator=stack.blip,
    )
    with (
        Console(sources) as console,
        httpx.Client(base_url=console.url, timeout=WAIT_SECONDS) as http,
    ):
        yield Page(console, http)


# --- what is shown --------------------------------------------------------------------------------


def test_root_leads_to_the_messages(page: Page) -> None:
    answer = page.http.get("/")
    assert answer.status_code == 302
    assert answer.headers["Location"] == "/messages"
    assert "No message yet" in page.get("/messages")


def test_a_message_is_shown_with_the_producers_id_its_text_and_its_request(
    stack: Stack, page: Page
) -> None:
    stack.deliver(a_request(id="order-1"))
    shown = page.get("/messages")
    assert "order-1" in shown
    assert "+55 31 99999-8888" in shown
    assert "Olá, Maria! O pedido 981 saiu para entrega." in shown
    assert "&#34;id&#34;: &#34;order-1&#34;" in shown
    assert ledger_key("default", "order-1") in shown


def test_what_a_message_holds_is_escaped_everywhere(stack: Stack, page: Page) -> None:
    evil = "<script>alert(1)</script>\"'&"
    template = {"name": "order_shipped", "language": "pt_BR", "body": [evil, f"*{evil}*"]}
    stack.deliver(a_request(id="order-1", template=template))
    stack.deliver(json.dumps({"id": "order-2", "to": evil})[:-1])
    for path in ("/messages", "/undelivered", "/events", f"/messages?q={evil}"):
        shown = page.get(path)
        assert "<script>alert" not in shown
        assert shown.count("<script") == 1
    checked = page.post("/send/check", request=json.dumps(a_request(template=template)))
    assert "&lt;script&gt;" in checked.text
    assert "<script" not in checked.text
    refused = page.post("/send", request=f"{evil}</textarea>{evil}")
    assert refused.status_code == 422
    assert refused.text.count("<script") == 1
    assert refused.text.count("</textarea>") == 1
