"""The local console's routes over moto and the simulator: what is shown, escaped, live, refused."""

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import unescape
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import boto3
import httpx
import pytest

from notifier.aws.table import Table
from notifier.aws.templates import DynamoDbTemplates
from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.notification import ledger_key
from notifier.domain.templates import (
    Category,
    RegisteredTemplate,
    Shape,
    TemplateStatus,
    Translation,
)
from tests.integration.conftest import Stack
from tests.integration.receipts_stack import Json, ReceiptsStack, a_receipt
from tests.local.blip import Template, wait_until
from tests.local.console import Console, Sources
from tests.local.console.pages import MAX_ROWS
from tests.local.events import Heard
from tests.local.machine import ROOT
from tests.support.builders import MARIA, a_request

WAIT_SECONDS = 60
TABS = ("messages", "undelivered", "events", "templates", "send")


@dataclass
class Page:
    """The console of a stack, and a client that is no browser."""

    console: Console
    http: httpx.Client

    def get(self, path: str, **query: str) -> str:
        answer = self.http.get(path, params=query or None)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, path: str, **form: str) -> httpx.Response:
        return self.http.post(path, data=form)


@pytest.fixture
def sources(stack: Stack, receipts: ReceiptsStack) -> Sources:
    aws = stack.aws
    heard = Heard(cast("Any", SimpleNamespace(sqs=aws.sqs)), receipts.listener_url)
    stream = aws.dynamodb.describe_table(TableName="ledger")["Table"]["LatestStreamArn"]
    return Sources(
        clients={
            "sqs": aws.sqs,
            "dynamodb": aws.dynamodb,
            "dynamodbstreams": boto3.client("dynamodbstreams"),
        },
        resources={
            "RequestsQueue": aws.requests_url,
            "DeadLettersQueue": aws.dead_letters_url,
            "IdentitiesTable": "identities",
        },
        stream=stream,
        heard=heard,
        simulator=stack.blip,
        bots={"default": "simulated"},
    )


@pytest.fixture
def page(sources: Sources) -> Iterator[Page]:
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
    wait_until(lambda: f"Olá, {MARIA}!" in page.get("/messages"))
    shown = page.get("/messages")
    assert "order-1" in shown
    assert "+55 31 99999-8888" in shown
    assert f"Olá, {MARIA}! O pedido 981 saiu para entrega." in shown
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


def test_refused_request_of_a_known_id_is_a_dead_letter_and_leaves_its_message(
    stack: Stack, receipts: ReceiptsStack, page: Page
) -> None:
    stack.deliver(a_request(id="order-1"))
    stack.deliver(a_request(id="order-1", to="+5531999990000"))
    receipts.publish()
    assert rows(page.get("/messages")) == [ledger_key("default", "order-1")]
    shown = page.get("/undelivered")
    assert "id_conflict" in shown
    assert len(rows(shown)) == 1
    assert len(rows(page.get("/events"))) == 2


def test_broken_fields_stand_with_their_sentences(stack: Stack, page: Page) -> None:
    body = json.dumps(a_request(id="order-1", too="1"))
    stack.deliver(body)
    with pytest.raises(InvalidRequest) as wrong:
        parse(body)
    [field] = wrong.value.fields
    for shown in (page.get("/undelivered"), page.post("/send/check", request=body).text):
        assert f"<code>{field.field}</code>" in shown
        assert field.problem in shown


def test_dead_letters_can_be_seen_by_others_after_they_were_shown(stack: Stack, page: Page) -> None:
    stack.deliver(*(f"broken {number}" for number in range(12)))
    assert len(rows(page.get("/undelivered"))) == 12
    assert len(stack.aws.dead_letters()) == 12
    shown = page.get("/undelivered", dry_run="yes")
    assert "0 of 0 would go back" in shown


def test_request_is_masked_once_its_recipient_is_forgotten(stack: Stack, page: Page) -> None:
    stack.deliver(a_request(id="order-1"))
    key = ledger_key("default", "order-1")
    assert "Maria" in page.get("/messages", open=key)
    stack.aws.dynamodb.update_item(
        TableName="ledger",
        Key={"key": {"S": key}},
        UpdateExpression="SET forgotten = :yes, #status = :cancelled REMOVE #request, #id, bot",
        ExpressionAttributeNames={"#status": "status", "#request": "request", "#id": "id"},
        ExpressionAttributeValues={":yes": {"BOOL": True}, ":cancelled": {"S": "cancelled"}},
    )
    wait_until(lambda: "The request as JSON" not in page.get("/messages", open=key))


def test_one_time_code_is_on_the_phone_and_in_no_request_that_is_kept(
    stack: Stack, receipts: ReceiptsStack, page: Page
) -> None:
    template = {"name": "login_code", "language": "pt_BR", "otp": "418205"}
    request = a_request(id="login-1", template=template)
    key = ledger_key("default", "login-1")
    stack.deliver(request)
    shown = page.get("/messages", open=key)
    assert "<strong>418205</strong> é o seu código" in shown
    assert "418205" not in shown.split("The request as JSON")[1].split("</pre>")[0]

    receipts.record(a_receipt(key, "failed", 131042))
    wait_until(lambda: "131042" in page.get("/undelivered"))
    shown = page.get("/undelivered")
    assert "+5531999998888" in shown
    assert "418205" not in shown
    again = page.post("/send/check", request=json.dumps(request)).text
    assert "dropped as a repetition" in again
    other = json.dumps(request | {"to": "+5531999990000"})
    assert "id_conflict" in page.post("/send/check", request=other).text


def test_message_that_waits_says_until_when(
    stack: Stack, receipts: ReceiptsStack, page: Page
) -> None:
    stack.deliver(a_request(id="order-1"))
    key = ledger_key("default", "order-1")
    receipts.record(a_receipt(key, "failed", 131049))
    wait_until(lambda: "waits to be sent again" in page.get("/messages", open=key))
    shown = page.get("/messages", open=key)
    [wake_at] = [item["wake_at"] for item in stack.aws.ledger()]
    moment = datetime.fromtimestamp(int(wake_at) / 1000, UTC).isoformat(timespec="milliseconds")
    assert f'after <time datetime="{moment.replace("+00:00", "Z")}">' in shown


# --- search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "order-1",
        "ORDER-1",
        "+5531999998888",
        "+55 31 99999-8888",
        "(31) 99999",
        "order_shipped",
        "saiu entrega",
        ledger_key("default", "order-1"),
    ],
)
def test_search_finds_by_id_number_template_and_words(stack: Stack, page: Page, words: str) -> None:
    other = {"name": "assembly_video", "language": "pt_BR"}
    stack.deliver(
        a_request(id="order-1"), a_request(id="invoice-2", to="+5531900001002", template=other)
    )
    assert rows(page.get("/messages", q=words)) == [ledger_key("default", "order-1")]
    assert rows(page.get("/messages", q=f"{words} nowhere")) == []


def test_long_list_goes_on_on_a_further_page(stack: Stack, page: Page) -> None:
    ids = [f"order-{number}" for number in range(MAX_ROWS + 5)]
    for start in range(0, len(ids), 10):
        stack.deliver(*(f"broken {number}" for number in ids[start : start + 10]))
    first = page.get("/undelivered")
    assert len(rows(first)) == MAX_ROWS
    [older] = re.findall(r'<p class="older"><a href="([^"]+)"', first)
    second = page.get(unescape(older))
    assert len(rows(second)) == 5
    assert not {*rows(first)} & {*rows(second)}
    assert "data-live" in first
    assert "data-live" not in second


# --- live -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def live(page: Page, path: str) -> Iterator[Callable[[str], Json]]:
    """Open a page and follow it; yield what waits for the next event of a name."""
    [address] = re.findall(r'data-live="([^"]+)"', page.get(path))
    with page.http.stream("GET", unescape(address)) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        lines = answer.iter_lines()

        def next_event(name: str) -> Json:
            found = ""
            for line in lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    found = value
                elif field == "data" and found == name:
                    event: Json = json.loads(value)
                    return event
            raise AssertionError(f"the stream ended without {name}")

        yield next_event


def test_what_happens_comes_as_events_of_an_open_page(
    stack: Stack, receipts: ReceiptsStack, page: Page
) -> None:
    key = ledger_key("default", "order-1")
    with live(page, "/messages") as next_event:
        stack.deliver(a_request(id="order-1"))
        row = next_event("row")
        assert row["ref"] == key
        assert "order-1" in row["html"]
        assert next_event("counts")["messages"] == 1
        receipts.record(a_receipt(key, "consumed"))
        while "tick consumed" not in next_event("row")["html"]:
            pass


def test_live_row_is_escaped(stack: Stack, page: Page) -> None:
    template = {"name": "order_shipped", "language": "pt_BR", "body": ["<script>", "1"]}
    with live(page, "/messages") as next_event:
        stack.deliver(a_request(template=template))
        html = next_event("row")["html"]
        assert "&lt;script&gt;" in html
        assert "<script>" not in html


def test_live_page_of_a_search_hears_of_nothing_else(stack: Stack, page: Page) -> None:
    with live(page, "/messages?q=order-2") as next_event:
        stack.deliver(a_request(id="order-1"), a_request(id="order-2"))
        assert next_event("row")["ref"] == ledger_key("default", "order-2")


def test_page_of_an_earlier_run_is_loaded_anew(page: Page) -> None:
    answer = page.http.get("/messages/live", params={"run": "another", "after": "1"})
    assert "event: reload" in answer.text


def test_dead_letter_that_is_put_back_leaves_the_open_page(stack: Stack, page: Page) -> None:
    stack.deliver(a_request(id="order-1", bot="nobody"))
    [ref] = rows(page.get("/undelivered"))
    with live(page, "/undelivered") as next_event:
        answer = page.post("/undelivered/redrive", id="order-1")
        assert answer.status_code == 303
        assert "redriven=1" in answer.headers["Location"]
        assert next_event("gone") == {"ref": ref}
    [record] = stack.receive()
    assert json.loads(record["body"])["id"] == "order-1"


# --- send -----------------------------------------------------------------------------------------


def test_request_is_published_as_it_was_typed(stack: Stack, page: Page) -> None:
    body = json.dumps(a_request(id="order-1"), indent=2)
    answer = page.post("/send", request=body.replace("\n", "\r\n"))
    assert answer.status_code == 303
    assert answer.headers["Location"] == f"/messages?open={ledger_key('default', 'order-1')}"
    assert "waiting on the queue" in page.get(answer.headers["Location"])
    [record] = stack.receive()
    assert record["body"] == body
    assert record["attributes"]["MessageGroupId"] == "default"


def test_broken_request_is_published_only_if_asked_for(stack: Stack, page: Page) -> None:
    assert page.post("/send", request="{").status_code == 422
    assert stack.receive() == []
    assert page.post("/send", request="{", as_is="yes").status_code == 303
    [record] = stack.receive()
    assert record["body"] == "{"


def test_id_that_was_published_before_is_pointed_out(stack: Stack, page: Page) -> None:
    stack.deliver(a_request(id="order-1"))
    page.get("/messages")
    again = page.post("/send/check", request=json.dumps(a_request(id="order-1"))).text
    assert "dropped as a repetition" in again
    other = json.dumps(a_request(id="order-1", to="+5531999990000"))
    assert "id_conflict" in page.post("/send/check", request=other).text
    new = json.dumps(a_request(id="order-2"))
    assert "published before" not in page.post("/send/check", request=new).text


def test_every_sample_can_be_started_from(page: Page) -> None:
    for sample in sorted((ROOT / "events").glob("*.json")):
        assert "<textarea" in page.get("/send", sample=sample.name)
    assert "01-text.json" in page.get("/send", sample="../README.md")


# --- templates ------------------------------------------------------------------------------------

ASKED_AT = 1_764_144_000.0
ORDER_SHIPPED = "default.order_shipped.pt_BR"


def change(page: Page, ref: str, **changes: str) -> httpx.Response:
    return page.post("/templates/change", ref=ref, **changes)


def test_templates_are_listed_with_what_whatsapp_says_and_what_they_take(
    stack: Stack, page: Page
) -> None:
    shown = page.get("/templates")
    assert rows(shown) == [
        f"default.{one.name}.{one.language}" for one in stack.blip.templates("simulated")
    ]
    for ref, parts in (
        (ORDER_SHIPPED, ["UTILITY", "APPROVED", "pt_BR", "2 values", "Loja Exemplo", "{{2}}"]),
        ("default.assembly_video.pt_BR", ["the link of a video"]),
        ("default.payment_reminder.pt_BR", ["the values customer, due_date", "{{customer}}"]),
        ("default.track_order.pt_BR", ["<dt>Button 1</dt>", "the end of its link", "Rastrear"]),
        ("default.seasonal_offers.pt_BR", ["<dt>Card 1, button 0</dt>", "86400 s", "Botas"]),
        ("default.login_code.pt_BR", ["AUTHENTICATION", "the one-time code"]),
        ("default.paused_template.pt_BR", ["PAUSED", "none: it takes its name"]),
    ):
        detail = unescape(page.get("/templates", open=ref))
        for part in parts:
            assert part in detail


def test_template_is_changed_by_a_form_and_on_every_open_page(stack: Stack, page: Page) -> None:
    with live(page, f"/templates?open={ORDER_SHIPPED}") as next_event:
        answer = change(page, ORDER_SHIPPED, status="PAUSED")
        assert answer.status_code == 303
        assert answer.headers["Location"] == f"/templates?open={ORDER_SHIPPED}"
        row = next_event("row")
        assert row["ref"] == ORDER_SHIPPED
        assert "PAUSED" in row["html"]
        detail = next_event("detail")["html"]
        assert 'value="PAUSED" aria-pressed="true"' in detail
        assert 'value="APPROVED" aria-pressed="false"' in detail
    template = stack.blip.template("order_shipped", "pt_BR", "simulated")
    assert template
    assert template.status == "PAUSED"
    everyones = stack.blip.template("order_shipped", "pt_BR")
    assert everyones
    assert everyones.status == "APPROVED"
    change(page, ORDER_SHIPPED, category="MARKETING")
    shown = page.get("/templates", open=ORDER_SHIPPED)
    assert 'value="MARKETING" aria-pressed="true"' in shown
    assert "<dt>Category before</dt><dd>UTILITY</dd>" in shown


def test_change_that_cannot_be_is_said(stack: Stack, page: Page) -> None:
    wrong = change(page, ORDER_SHIPPED, status="<b>")
    assert wrong.status_code == 422
    assert 'role="alert"' in wrong.text
    assert "<b>" not in wrong.text.split('role="alert"')[1].split("</p>")[0]
    assert change(page, "default.lost.pt_BR", status="PAUSED").status_code == 422
    template = stack.blip.template("order_shipped", "pt_BR", "simulated")
    assert template
    assert template.status == "APPROVED"


def test_new_and_removed_templates_are_followed(stack: Stack, page: Page) -> None:
    before = rows(page.get("/templates"))
    evil = Template(name="evil", language="pt_BR", text="<script>{{1}}", footer="<script>")
    with live(page, "/templates") as next_event:
        stack.blip.put_templates(evil)
        row = next_event("row")
        assert row["ref"] == "default.evil.pt_BR"
        assert "<script>" not in row["html"]
        assert next_event("counts")["templates"] == len(before) + 1
        stack.blip.remove_templates("evil")
        assert next_event("gone") == {"ref": "default.evil.pt_BR"}
    assert rows(page.get("/templates")) == before
    assert "no such template" in page.get("/templates", open="default.evil.pt_BR")


def sync(stack: Stack, asked_at: float, language: str = "pt_BR") -> None:
    """Write a template as the stack does when it has asked BLiP."""
    shape = Shape(body=2, body_length=30)
    translation = Translation(TemplateStatus.APPROVED, Category.UTILITY, shape=shape)
    table = Table(stack.aws.dynamodb, "identities")
    DynamoDbTemplates(table, lambda: asked_at).keep(
        "default", RegisteredTemplate("order_shipped", asked_at, {language: translation})
    )


def test_what_the_stack_knows_of_a_template_stands_beside_it(stack: Stack, page: Page) -> None:
    path = f"/templates?open={ORDER_SHIPPED}"
    assert "Not synced" in page.get(path)
    sync(stack, ASKED_AT - 1, "en_US")
    with live(page, path) as next_event:
        sync(stack, ASKED_AT)
        while "Not synced" in (html := next_event("detail")["html"]):
            pass
    assert "2025-11-26T08:00:00.000Z" in html
    assert "&#34;body&#34;: 2" in html
    assert "BLiP says something else" not in html
    change(page, ORDER_SHIPPED, status="PAUSED")
    assert "BLiP says something else" in page.get(path)


def test_templates_of_another_blip_are_not_shown(sources: Sources) -> None:
    with (
        Console(replace(sources, simulator=None)) as console,
        httpx.Client(base_url=console.url, timeout=WAIT_SECONDS) as http,
    ):
        other = Page(console, http)
        assert "another BLiP" in other.get("/templates")
        assert change(other, ORDER_SHIPPED, status="PAUSED").status_code == 422


# --- who may ask ----------------------------------------------------------------------------------


def test_form_of_another_site_is_refused(stack: Stack, page: Page) -> None:
    request = json.dumps(a_request())
    for headers in (
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        {"Origin": f"{page.console.url.rstrip('/')}.example.com"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for path in ("/send", "/send/check", "/undelivered/redrive", "/templates/change"):
            answer = page.http.post(path, data={"request": request}, headers=headers)
            assert answer.status_code == 403, (path, headers)
    assert stack.receive() == []
    own = {"Origin": page.console.url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert page.http.post("/send", data={"request": request}, headers=own).status_code == 303


def test_another_host_is_refused(page: Page) -> None:
    port = urlsplit(page.console.url).port
    for host in ("example.com", f"example.com:{port}", "127.0.0.1", f"127.0.0.1.example:{port}"):
        assert page.http.get("/messages", headers={"Host": host}).status_code == 421
    assert page.http.get("/messages", headers={"Host": f"localhost:{port}"}).status_code == 200


def test_nothing_but_the_consoles_own_files_runs_in_a_page(stack: Stack, page: Page) -> None:
    stack.deliver(a_request())
    stack.deliver("broken")
    for path in (*TABS, "send?sample=41-invalid.json"):
        answer = page.http.get(f"/{path}")
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"<[^>]+\s(on\w+|style)=", answer.text)
        assert re.findall(r"<script[^>]*>", answer.text) == [
            '<script src="/static/console.js" defer>'
        ]


def test_console_listens_on_this_machine_only(page: Page) -> None:
    assert urlsplit(page.console.url).hostname == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", urlsplit(page.console.url).port or 0), 5)


def rows(html: str) -> list[str]:
    """Return the names of the rows of a page."""
    return re.findall(r'<li class="row" id="([^"]+)"', html)
