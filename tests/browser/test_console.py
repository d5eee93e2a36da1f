"""The local console as a person has it: in a browser, at a desk and on a phone, light and dark."""

import json
import re
import uuid
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.notification import ledger_key
from tests.browser.conftest import Screen
from tests.local.blip import Simulator, Template
from tests.local.machine import PATIENCE_SECONDS, ROOT, wait_until
from tests.local.stack import LocalStack

TABS = ("messages", "undelivered", "events", "templates", "send")


def a_request(**changes: Any) -> dict[str, Any]:
    template = {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981"]}
    to = f"+55319000{uuid.uuid4().int % 100_000:05}"
    return {"id": f"order-{uuid.uuid4()}", "to": to, "template": template} | changes


def publish(stack: LocalStack, *requests: dict[str, Any] | str) -> None:
    for request in requests:
        body = request if isinstance(request, str) else json.dumps(request)
        stack.aws.sqs.send_message(QueueUrl=stack.requests_queue, MessageBody=body)


def row(page: Page, text: str) -> Locator:
    return page.locator("#rows li", has_text=text)


def send(page: Page, request: dict[str, Any]) -> None:
    """Publish a request with the form."""
    page.goto("/send")
    page.get_by_label("Request").fill(json.dumps(request))
    page.get_by_role("button", name="Send", exact=True).click()


# --- live -----------------------------------------------------------------------------------------


def test_what_is_sent_arrives_on_an_open_page_without_reloading(
    page: Page, context: BrowserContext
) -> None:
    request = a_request()
    page.goto("/")
    expect(page).to_have_title("Messages · blip-notifier")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.evaluate("window.isStillThis = true")
    expect(row(page, request["id"])).to_have_count(0)

    other = context.new_page()
    send(other, request)
    expect(other).to_have_url(re.compile(f"open={ledger_key('default', request['id'])}"))
    expect(other.locator("#detail")).to_contain_text("Olá, Maria! O pedido 981 saiu para entrega.")
    expect(other.locator("#detail .facts")).to_contain_text("consumed")

    arrived = row(page, request["id"])
    expect(arrived).to_be_visible()
    expect(arrived.locator(".tick.consumed")).to_be_visible()
    expect(arrived).to_contain_text("order_shipped")
    assert page.evaluate("window.isStillThis")


def test_status_events_show_up_as_they_go_out(page: Page, stack: LocalStack) -> None:
    request = a_request()
    page.goto("/events")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    publish(stack, request)
    expect(row(page, request["id"]).filter(has_text="consumed")).to_be_visible()
    expect(row(page, request["id"]).filter(has_text="sent")).to_be_visible()


# --- search ---------------------------------------------------------------------------------------


def test_message_is_found_by_id_number_and_template(page: Page, stack: LocalStack) -> None:
    wanted = a_request()
    other = a_request(template={"name": "assembly_video", "language": "pt_BR"})
    other["template"]["header"] = {"type": "video", "link": "https://example.com/a.mp4"}
    publish(stack, wanted, other)
    page.goto("/messages")
    expect(row(page, wanted["id"])).to_be_visible()
    expect(row(page, other["id"])).to_be_visible()

    number = wanted["to"]
    written = f"{number[:3]} {number[3:5]} {number[5:10]}-{number[10:]}"
    for words in (wanted["id"], number, written, f"order_shipped {wanted['id'][6:]}"):
        page.get_by_role("searchbox").fill(words)
        expect(row(page, other["id"])).to_have_count(0)
        expect(row(page, wanted["id"])).to_have_count(1)
    page.get_by_role("searchbox").fill("assembly_video")
    expect(row(page, wanted["id"])).to_have_count(0)
    expect(row(page, other["id"])).to_be_visible()

    # What is found goes on to be live.
    late = other | {"id": f"order-{uuid.uuid4()}"}
    publish(stack, late)
    expect(row(page, late["id"])).to_be_visible()


# --- not delivered --------------------------------------------------------------------------------


def test_dead_letter_is_put_back_after_a_dry_run(
    page: Page, stack: LocalStack, blip: Simulator
) -> None:
    name = f"refund_{uuid.uuid4().hex}"
    request = a_request(template={"name": name, "language": "pt_BR", "body": ["Maria"]})
    page.goto("/undelivered")
    publish(stack, request)
    dead = row(page, request["id"])
    expect(dead).to_contain_text("undelivered 132001")

    dead.get_by_role("link").click()
    detail = page.locator("#detail")
    expect(detail).to_contain_text(request["to"])
    detail.get_by_role("button", name="Dry run").click()
    outcome = page.locator("#outcome")
    expect(outcome).to_contain_text("1 of 1 would go back to the queue")
    expect(outcome).to_contain_text(request["id"])
    assert [one["id"] for one in blip.inbox(phone=request["to"])] == [
        ledger_key("default", request["id"])
    ]

    blip.put_templates(Template(name=name, language="pt_BR", body=1, text="Olá, {{1}}!"))
    outcome.get_by_role("button", name="Put 1 back").click()
    expect(outcome).to_contain_text("1 went back to the queue")
    expect(dead).to_have_count(0)
    page.goto(f"/messages?q={request['id']}")
    expect(row(page, request["id"])).to_have_count(2)
    expect(row(page, "Olá, Maria!").locator(".tick.consumed")).to_be_visible()


def test_what_cannot_succeed_stays_with_the_reason(page: Page, stack: LocalStack) -> None:
    request = a_request(too="1")
    publish(stack, request)
    page.goto("/undelivered")
    row(page, request["id"]).get_by_role("link").click()
    fields = page.get_by_role("table", name="Broken fields")
    expect(fields).to_contain_text("unknown field; did you mean to?")
    page.get_by_role("button", name="Dry run of").click()
    outcome = page.locator("#outcome")
    expect(outcome).to_contain_text("0 of 1 would go back to the queue")
    expect(outcome).to_contain_text("publish it anew, fixed")
    expect(outcome.get_by_role("button")).to_have_count(0)


# --- templates ------------------------------------------------------------------------------------


def test_template_that_is_paused_shows_on_an_open_page_without_reloading(
    page: Page, context: BrowserContext, blip: Simulator
) -> None:
    name = f"offer_{uuid.uuid4().hex}"
    page.goto("/templates")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.evaluate("window.isStillThis = true")
    blip.put_templates(Template(name=name, language="pt_BR", text="Oi, {{1}}!", bot="simulated"))
    new = row(page, name)
    expect(new.locator(".badge")).to_have_text("APPROVED")

    other = context.new_page()
    other.goto(f"/templates?q={name}")
    row(other, name).get_by_role("link").click()
    detail = other.locator("#detail")
    expect(detail.locator(".bubble")).to_contain_text("Oi, {{1}}!")
    expect(detail).to_contain_text("Not synced")
    detail.get_by_role("button", name="PAUSED", exact=True).click()
    expect(detail.get_by_role("button", name="PAUSED", exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )
    expect(new.locator(".badge")).to_have_text("PAUSED")
    detail.get_by_role("button", name="MARKETING", exact=True).click()
    expect(detail.locator(".facts").first).to_contain_text(re.compile("Category before\\s*UTILITY"))
    expect(new).to_contain_text("MARKETING")
    assert page.evaluate("window.isStillThis")

    template = blip.template(name, "pt_BR", "simulated")
    assert template
    assert (template.status, template.category) == ("PAUSED", "MARKETING")
    blip.remove_templates(name)
    expect(new).to_have_count(0)


# --- send -----------------------------------------------------------------------------------------


def test_request_is_checked_as_one_types(page: Page) -> None:
    request = a_request()
    page.goto("/send")
    verdict = page.locator("#verdict")
    expect(verdict).to_contain_text("Keeps to the contract")
    text = page.get_by_label("Request")
    text.fill(json.dumps(request))
    expect(verdict.locator(".bubble")).to_contain_text("Maria")

    broken = request | {"to": "+55", "templte": {}}
    text.fill("")
    text.press_sequentially(json.dumps(broken))
    with pytest.raises(InvalidRequest) as wrong:
        parse(json.dumps(broken))
    for field in wrong.value.fields:
        expect(verdict.get_by_role("row", name=field.field)).to_contain_text(field.problem)

    text.fill("{")
    expect(verdict).to_contain_text("malformed")
    expect(verdict).to_contain_text("the body is not JSON")


def test_broken_request_is_sent_only_as_it_is(page: Page) -> None:
    broken = a_request(too="1")
    send(page, broken)
    expect(page).to_have_url(re.compile("/send$"))
    expect(page.locator("#verdict")).to_contain_text("unknown field; did you mean to?")
    assert json.loads(page.get_by_label("Request").input_value()) == broken

    page.get_by_role("button", name="Send as it is").click()
    expect(row(page, broken["id"])).to_contain_text("invalid")


def test_sample_has_an_id_of_its_own(page: Page) -> None:
    page.goto("/send")
    page.get_by_label("Start from").select_option("12-components.json")
    expect(page.get_by_label("Request")).to_have_value(re.compile("seasonal_offers"))
    expect(page.locator("#verdict .cards > li")).to_have_count(2)
    sample = json.loads((ROOT / "events/12-components.json").read_text())
    shown = json.loads(page.get_by_label("Request").input_value())
    assert shown["id"].startswith(f"{sample['id']}-")
    assert shown | {"id": ""} == sample | {"id": ""}


# --- accessibility --------------------------------------------------------------------------------


def test_axe_finds_nothing_on_any_tab(page: Page, stack: LocalStack) -> None:
    samples = [path.read_text() for path in sorted((ROOT / "events").glob("*.json"))]
    publish(stack, *samples)
    page.goto("/undelivered")
    expect(row(page, "order-991-shipped").first).to_be_visible()
    page.goto("/messages")
    expect(row(page, "offers-autumn:8").locator(".tick.consumed")).to_be_visible()

    addresses = [f"/{tab}" for tab in TABS]
    addresses += [page.get_attribute("#rows li a", "href") or ""]
    for words in ("offers-autumn", "order-982", "order-986", "invoice-2041", "login-5417"):
        page.goto(f"/messages?q={words}")
        addresses.append(row(page, words).first.locator("a").get_attribute("href") or "")
    page.goto("/undelivered?q=order-991")
    addresses.append(page.get_attribute("#rows li a", "href") or "")
    addresses += [
        "/templates?open=default.seasonal_offers.pt_BR",
        "/templates?open=clinic.paused_template.pt_BR",
        "/templates?open=nothing-has-this",
        "/messages?q=nothing-has-this",
        "/messages?open=nothing-has-this",
        "/undelivered?dry_run=yes",
        "/send?sample=41-invalid.json",
        "/send?sample=12-components.json",
    ]
    for address in addresses:
        page.goto(address)
        expect(page.locator("#content")).to_be_visible()  # on a phone an open item covers the list
        found = Axe().run(page)
        assert found.violations_count == 0, f"{address}\n{found.generate_report()}"


def test_nothing_is_cut_and_nothing_runs_over_the_edge(page: Page, stack: LocalStack) -> None:
    request = a_request(id=f"{uuid.uuid4()}{'x' * 92}", too="1")
    good = a_request(id=f"{uuid.uuid4()}{'y' * 92}")
    publish(stack, request, good)
    for tab, wanted in (("messages", good), ("undelivered", request), ("events", good)):
        page.goto(f"/{tab}")
        link = row(page, wanted["id"]).first.get_by_role("link")
        assert_whole(page)
        link.click()
        expect(page.locator("#detail")).to_contain_text(wanted["id"])
        assert_whole(page)
    page.goto("/templates")
    assert_whole(page)
    for name in ("seasonal_offers", "payment_reminder", "login_code"):
        page.goto(f"/templates?open=default.{name}.pt_BR")
        expect(page.locator("#detail")).to_contain_text(name)
        assert_whole(page)
    page.goto("/send?sample=41-invalid.json")
    assert_whole(page)


def assert_whole(page: Page) -> None:
    """Assert that the page is no wider than its window, and no id, time or reason than its box."""
    cut = page.evaluate(
        """() => [document.documentElement,
            ...document.querySelectorAll("code, time, dd, .why, .reason, .first, h1, h2, td, th")]
          .filter((one) => one.scrollWidth > one.clientWidth && one.clientWidth > 0
            && getComputedStyle(one).display !== "inline")
          .map((one) => one.outerHTML.slice(0, 200))"""
    )
    assert cut == []


def test_rows_are_opened_with_the_keyboard(page: Page, stack: LocalStack, screen: Screen) -> None:
    request = a_request()
    publish(stack, request)
    page.goto(f"/messages?q={request['id']}")
    link = row(page, request["id"]).get_by_role("link")
    link.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#detail .facts")).to_contain_text("consumed")
    if screen.size == "phone":
        page.get_by_role("link", name="Messages").first.click()
        expect(link).to_be_visible()


def test_everything_works_without_javascript(browser: Browser, blip: Simulator, url: str) -> None:
    context = browser.new_context(base_url=url, java_script_enabled=False)
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    page = context.new_page()
    request = a_request(template={"name": f"refund_{uuid.uuid4().hex}", "language": "pt_BR"})
    page.goto("/send")
    page.get_by_label("Start from").select_option("05-quick-reply.json")
    page.get_by_role("button", name="Load").click()
    expect(page.get_by_label("Request")).to_have_value(re.compile("appointment_reminder"))
    page.get_by_label("Request").fill(json.dumps(request | {"too": "1"}))
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator("#verdict")).to_contain_text("unknown field; did you mean to?")
    page.get_by_label("Request").fill(json.dumps(request))
    page.get_by_role("button", name="Send", exact=True).click()

    # A click returns before its page has come: what follows at once may still meet the old page.
    expect(page).to_have_url(re.compile(f"open={ledger_key('default', request['id'])}"))
    reload_until(page, "failed")
    page.get_by_role("link", name="See its dead letter").click()
    expect(page).to_have_url(re.compile(f"/undelivered.*{request['id']}"))
    page.get_by_role("searchbox").fill(request["template"]["name"])
    page.get_by_role("searchbox").press("Enter")
    expect(page).to_have_url(re.compile(request["template"]["name"]))
    row(page, request["id"]).get_by_role("link").click()
    expect(page.locator("#detail")).to_contain_text("132001")
    page.get_by_role("button", name="Dry run of").click()
    expect(page.locator("#outcome")).to_contain_text("1 of 1 would go back")
    blip.put_templates(Template(name=request["template"]["name"], language="pt_BR", text="Olá!"))
    page.get_by_role("button", name="Put 1 back").click()
    expect(page.locator("#outcome")).to_contain_text("1 went back to the queue")
    page.goto(f"/messages?open={ledger_key('default', request['id'])}:2")
    reload_until(page, "consumed")
    expect(page.locator("#detail .bubble")).to_contain_text("Olá!")

    page.goto(f"/templates?q={request['template']['name']}")
    row(page, "default").get_by_role("link").click()
    page.get_by_role("button", name="DISABLED").click()
    expect(page.get_by_role("button", name="DISABLED")).to_have_attribute("aria-pressed", "true")
    context.close()


def reload_until(page: Page, status: str) -> None:
    """Load the page anew, as a person does, until its message has come so far."""

    def has_come() -> bool:
        page.reload()
        return bool(page.locator("#detail .facts", has_text=status).count())

    wait_until(has_come, f"the message to be {status}", every=0.2)
