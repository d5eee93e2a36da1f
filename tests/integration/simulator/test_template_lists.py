"""The BLiP simulator: the lists of templates, and templates that change."""

from typing import Any

import httpx
import pytest

from tests.integration.simulator.client import GATEWAY, Client, Clock, Json, body, content
from tests.local.blip import Bot, Marketing, Simulator, Template
from tests.local.blip.templates import STATUSES, read
from tests.support.builders import PHONE

PLAIN = "/message-templates"
ENRICHED = "/message-templates-enriched"


def listed(client: Client, uri: str = PLAIN) -> list[Json]:
    answer = client.command(uri, GATEWAY)
    assert answer["status"] == "success", answer
    items: list[Json] = answer["resource"]["data"]
    return items


def names(client: Client, uri: str = PLAIN) -> list[str]:
    return [item["name"] for item in listed(client, uri)]


def statuses(client: Client) -> dict[str, str]:
    return {item["name"]: item["status"] for item in listed(client)}


def the_only(client: Client, name: str) -> Json:
    [item] = listed(client, f"{ENRICHED}?templateName={name}")
    return item


def codes(blip: Simulator) -> list[int | None]:
    return [entry["reason"] and entry["reason"]["code"] for entry in blip.inbox()]


def patch(client: Client, changes: Any, **query: str) -> httpx.Response:
    return client.http.patch("/_simulator/templates", params=query, json=changes)


# --- The lists ------------------------------------------------------------------------------------


def test_plain_list_names_each_template(client: Client) -> None:
    answer = client.command(PLAIN, GATEWAY)
    assert (answer["status"], answer["type"]) == ("success", "application/json")
    assert len(answer["resource"]["data"]) == len(read())
    first = answer["resource"]["data"][0]
    assert first.pop("id").isdecimal()
    assert first == {
        "name": "order_shipped",
        "category": "UTILITY",
        "language": "pt_BR",
        "status": "APPROVED",
    }


def test_enriched_list_has_the_form_of_the_management_api(client: Client, clock: Clock) -> None:
    patch(client, {"category": "MARKETING"}, name="order_shipped")
    shown = the_only(client, "order_shipped")
    assert shown.pop("id") == listed(client)[0]["id"]
    assert shown == {
        "name": "order_shipped",
        "category": "MARKETING",
        "previous_category": "UTILITY",
        "status": "APPROVED",
        "rejected_reason": "NONE",
        "language": "pt_BR",
        "last_updated_time": "1970-01-12T13:46:40+0000",
        "parameter_format": "POSITIONAL",
        "components": [
            {
                "type": "BODY",
                "text": "Olá, {{1}}! O pedido {{2}} saiu para entrega.",
                "example": {"body_text": [["exemplo", "exemplo"]]},
            },
            {"type": "FOOTER", "text": "Loja Exemplo"},
        ],
    }
    assert clock.now == 1_000_000


def components(client: Client, name: str) -> list[tuple[str, str]]:
    """Return the type of each component with what tells it apart."""
    return [
        (one["type"], one.get("format") or one.get("text") or "")
        for one in the_only(client, name)["components"]
    ]


def test_components_are_made_of_the_templates_parts(client: Client) -> None:
    assert components(client, "order_photo")[0] == ("HEADER", "IMAGE")
    assert components(client, "pickup_point")[0] == ("HEADER", "LOCATION")
    [header, *_] = the_only(client, "order_delayed")["components"]
    assert header == {
        "type": "HEADER",
        "format": "TEXT",
        "text": "{{1}}",
        "example": {"header_text": ["exemplo"]},
    }
    assert [kind for kind, _ in components(client, "discount_coupon")] == [
        "BODY",
        "FOOTER",
        "BUTTONS",
    ]
    assert the_only(client, "login_code")["message_send_ttl_seconds"] == 600
    assert "message_send_ttl_seconds" not in the_only(client, "order_shipped")


def test_named_variables_are_listed_as_such(client: Client) -> None:
    shown = the_only(client, "payment_reminder")
    assert shown["parameter_format"] == "NAMED"
    [text] = shown["components"]
    assert "{{customer}}" in text["text"]
    named = text["example"]["body_text_named_params"]
    assert [one["param_name"] for one in named] == ["customer", "due_date"]


def buttons(client: Client, name: str) -> list[Json]:
    [found] = [c for c in the_only(client, name)["components"] if c["type"] == "BUTTONS"]
    shown: list[Json] = found["buttons"]
    return shown


def test_buttons_are_listed_with_their_words_and_variables(blip: Simulator, client: Client) -> None:
    call, track = buttons(client, "track_order")
    assert (call["type"], call["text"]) == ("PHONE_NUMBER", "Ligar")
    assert (track["type"], track["text"]) == ("URL", "Rastrear")
    assert track["url"].endswith("{{1}}")
    assert [button["type"] for button in buttons(client, "discount_coupon")] == ["COPY_CODE"]
    kinds: list[Any] = ["STATIC_URL", "FLOW", "CATALOG", "MPM", "QUICK_REPLY"]
    blip.put_templates(Template(name="order_shipped", language="pt_BR", buttons=kinds))
    static, *others = buttons(client, "order_shipped")
    assert (static["type"], "{{" in static["url"]) == ("URL", False)
    assert [button["type"] for button in others] == kinds[1:]
    assert all(button["text"] for button in (static, *others))


def test_button_of_a_one_time_code_is_listed_as_whatsapp_does_or_as_it_is_created(
    blip: Simulator, client: Client
) -> None:
    [button] = buttons(client, "login_code")
    assert button["type"] == "URL"
    assert button["url"].startswith("https://www.whatsapp.com/otp/code/?otp_type=COPY_CODE")
    assert button["url"].endswith("{{1}}")
    blip.configure(templates={"otp_button": "OTP"})
    [button] = buttons(client, "login_code")
    assert button == {"type": "OTP", "otp_type": "COPY_CODE", "text": "Copiar código"}


def test_carousel_lists_its_cards(client: Client) -> None:
    *_, carousel = the_only(client, "seasonal_offers")["components"]
    assert carousel["type"] == "CAROUSEL"
    assert [[part["type"] for part in card["components"]] for card in carousel["cards"]] == [
        ["HEADER", "BODY", "BUTTONS"]
    ] * 2


def test_unknown_component_is_listed_as_it_stands_and_taken(
    blip: Simulator, client: Client
) -> None:
    offer = {"type": "LIMITED_TIME_OFFER", "limited_time_offer": {"text": "Só hoje"}}
    blip.put_templates(Template(name="offer", language="pt_BR", text="Oi", further=[offer]))
    assert the_only(client, "offer")["components"][-1] == offer
    blip.know(PHONE)
    sent = {"type": "limited_time_offer", "parameters": []}
    client.send(content=content(sent, name="offer"))
    client.send(content=content(sent, sent, name="offer"))
    client.send(content=content(sent, body("a", "b"), name="order_shipped"))
    assert codes(blip) == [None, 132012, 132012]


def test_reason_of_a_rejection_is_listed(blip: Simulator, client: Client) -> None:
    blip.change_template("order_shipped", status="REJECTED")
    assert the_only(client, "order_shipped")["rejected_reason"] == "INVALID_FORMAT"
    blip.change_template("order_shipped", rejected_reason="ABUSIVE_CONTENT")
    assert the_only(client, "order_shipped")["rejected_reason"] == "ABUSIVE_CONTENT"


@pytest.mark.parametrize("uri", [PLAIN, ENRICHED])
def test_envelope_of_the_list_is_chosen(blip: Simulator, client: Client, uri: str) -> None:
    items = client.command(uri, GATEWAY)["resource"]["data"]
    blip.configure(templates={"envelope": "items"})
    answer = client.command(uri, GATEWAY)
    assert answer["type"] == "application/vnd.lime.collection+json"
    assert answer["resource"] == {
        "total": len(items),
        "itemType": "application/json",
        "items": items,
    }
    blip.configure(templates={"envelope": "list"})
    assert client.command(uri, GATEWAY)["resource"] == items


@pytest.mark.parametrize("code", [62, 67])
def test_enriched_list_can_be_missing(blip: Simulator, client: Client, code: int) -> None:
    blip.configure(templates={"without_enriched": code})
    assert client.command(ENRICHED, GATEWAY)["reason"]["code"] == code
    assert "order_shipped" in names(client)


def test_template_is_chosen_by_its_name(blip: Simulator, client: Client) -> None:
    assert names(client, f"{PLAIN}?templateName=order") == []
    assert names(client, f"{PLAIN}?templateName=order_photo") == ["order_photo"]
    blip.configure(templates={"name_filter": "contains"})
    assert names(client, f"{PLAIN}?templateName=order_p") == ["order_photo"]
    blip.configure(templates={"name_filter": "ignored"})
    assert len(names(client, f"{PLAIN}?templateName=order_p")) == len(read())


# --- Pages ----------------------------------------------------------------------------------------


def many(count: int) -> list[Json]:
    text = f"Olá, {{{{1}}}}! {'A oferta é esta. ' * 10}"
    template = {"language": "pt_BR", "text": text, "buttons": ["QUICK_REPLY"]}
    return [template | {"name": f"offer_{number}"} for number in range(count)]


def test_thousands_are_put_at_once_and_read_page_by_page(client: Client) -> None:
    assert client.http.delete("/_simulator/templates").status_code == 204
    assert names(client) == []
    assert client.http.put("/_simulator/templates", json=many(6_000)).status_code == 204
    found: list[str] = []
    while page := names(client, f"{ENRICHED}?$skip={len(found)}&$take=100"):
        assert len(page) == 100
        found += page
    assert found == [one["name"] for one in many(6_000)]


def test_page_has_at_most_100(blip: Simulator, client: Client) -> None:
    client.http.put("/_simulator/templates", json=many(200))
    assert len(names(client)) == 100
    assert names(client, f"{PLAIN}?$skip=1&$take=2") == ["order_photo", "assembly_video"]
    for query in ("$take=101", "$take=0", "$skip=-1", "$take=x"):
        assert client.command(f"{PLAIN}?{query}", GATEWAY)["reason"]["code"] == 64
    blip.configure(templates={"skip": False})
    assert names(client, f"{PLAIN}?$skip=1&$take=2") == ["order_shipped", "order_photo"]


# --- Bots and plans -------------------------------------------------------------------------------


def test_bot_without_whatsapp_has_no_list(blip: Simulator) -> None:
    bot = Bot(name="chat", whatsapp=False)
    blip.put_bot(bot)
    client = Client(blip, bot.key)
    for uri in (PLAIN, ENRICHED):
        assert client.command(uri, GATEWAY)["reason"]["code"] == 81
    client.http.close()


def test_lists_count_as_commands_of_the_plan(blip: Simulator) -> None:
    bot = Bot(name="slow", commands_per_second=2)
    blip.put_bot(bot)
    client = Client(blip, bot.key)
    command = {"id": "c", "method": "get", "uri": PLAIN, "to": GATEWAY}
    assert [client.post("/commands", command).status_code for _ in range(4)] == [
        200,
        200,
        429,
        429,
    ]
    assert blip.statistics()["kinds"] == {"templates": 2}
    client.http.close()


def test_bots_have_templates_of_their_own(blip: Simulator, client: Client) -> None:
    bot = Bot(name="clinic")
    blip.put_bot(bot)
    clinic = Client(blip, bot.key)
    blip.put_templates(Template(name="exam_ready", language="pt_BR", bot="clinic", text="Pronto."))
    assert "exam_ready" in names(clinic)
    assert "exam_ready" not in names(client)

    blip.change_template("order_shipped", bot="clinic", status="PAUSED")
    assert statuses(clinic)["order_shipped"] == "PAUSED"
    assert statuses(client)["order_shipped"] == "APPROVED"
    for sender in (client, clinic):
        blip.know(PHONE, "clinic")
        blip.know(PHONE, "simulated")
        sender.send()
    assert codes(blip) == [None, 132015]

    blip.remove_templates("order_shipped", bot="clinic")
    assert "order_shipped" not in names(clinic)
    assert "order_shipped" in names(client)
    blip.change_template("order_photo", bot="clinic", status="PAUSED")
    blip.change_template("order_photo", status="DISABLED")
    assert statuses(clinic)["order_photo"] == statuses(client)["order_photo"] == "DISABLED"
    blip.put_templates(Template(name="order_photo", language="pt_BR"))
    assert statuses(clinic)["order_photo"] == statuses(client)["order_photo"] == "APPROVED"
    assert [one.name for one in blip.templates("clinic")] == names(clinic)
    own = client.http.get("/_simulator/templates", params={"bot": "clinic"}).json()
    assert [one["name"] for one in own] == names(clinic)
    clinic.http.close()


# --- Changes --------------------------------------------------------------------------------------


def test_template_is_changed_over_http(client: Client) -> None:
    [changed] = patch(client, {"status": "PAUSED"}, name="order_shipped", language="pt_BR").json()
    assert (changed["status"], changed["text"]) == (
        "PAUSED",
        "Olá, {{1}}! O pedido {{2}} saiu para entrega.",
    )
    assert statuses(client)["order_shipped"] == "PAUSED"
    [changed] = patch(client, {"text": "{{1}}, {{2}}, {{3}}"}, name="order_shipped").json()
    assert (changed["body"], changed["status"]) == (3, "PAUSED")
    [changed] = patch(client, {"text": "{{name}}, {{order}}"}, name="order_shipped").json()
    assert changed["body"] == ["name", "order"]
    [changed] = patch(client, {"body": 1}, name="order_shipped").json()
    assert (changed["body"], changed["text"]) == (1, None)
    [changed] = patch(client, {"header": "VIDEO"}, name="order_delayed").json()
    assert (changed["header"], changed["header_text"]) == ("VIDEO", None)


def test_change_of_category_keeps_the_one_before(blip: Simulator, client: Client) -> None:
    blip.change_template("order_shipped", category="MARKETING")
    blip.change_template("order_shipped", category="MARKETING", status="APPROVED")
    shown = the_only(client, "order_shipped")
    assert (shown["category"], shown["previous_category"]) == ("MARKETING", "UTILITY")


def test_all_languages_are_changed_unless_one_is_named(blip: Simulator, client: Client) -> None:
    blip.put_templates(Template(name="order_shipped", language="en_US", text="Hi {{1}}"))
    assert len(patch(client, {"status": "PAUSED"}, name="order_shipped").json()) == 2
    blip.change_template("order_shipped", "en_US", status="APPROVED")
    found = listed(client, f"{PLAIN}?templateName=order_shipped")
    assert {one["language"]: one["status"] for one in found} == {
        "pt_BR": "PAUSED",
        "en_US": "APPROVED",
    }
    query = {"name": "order_shipped", "language": "pt_BR"}
    assert client.http.delete("/_simulator/templates", params=query).status_code == 204
    found = listed(client, f"{PLAIN}?templateName=order_shipped")
    assert [one["language"] for one in found] == ["en_US"]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("lost", {"status": "PAUSED"}, "no template lost"),
        ("order_shipped", {"status": "GONE"}, "status"),
        ("order_shipped", {"stats": "PAUSED"}, "stats"),
        ("order_shipped", {"language": "en_US"}, "language"),
        ("order_shipped", {"text": "{{1}} {{3}}"}, "1, 3"),
        ("order_shipped", {"text": "{{1}}", "body": 2}, "text"),
        ("order_photo", {"header_text": "Foto"}, "header_text"),
        ("order_shipped", {"header_text": "{{1}}"}, "header_text"),
        ("order_shipped", {"labels": ["Sim"]}, "labels"),
        ("order_shipped", ["status"], "an object"),
        ("", {"status": "PAUSED"}, "?name="),
    ],
)
def test_change_that_cannot_be_is_400(client: Client, name: str, changes: Any, said: str) -> None:
    before = client.http.get("/_simulator/templates").json()
    answer = patch(client, changes, name=name)
    assert answer.status_code == 400
    assert said in answer.text
    assert client.http.get("/_simulator/templates").json() == before


def test_list_lags_behind_changes_and_messages_do_not(
    blip: Simulator, client: Client, clock: Clock
) -> None:
    blip.configure(templates={"lag_seconds": 600})
    blip.know(PHONE)
    assert statuses(client)["order_shipped"] == "APPROVED"
    blip.change_template("order_shipped", status="PAUSED")
    blip.remove_templates("order_photo")
    blip.put_templates(Template(name="new", language="pt_BR", text="Oi"))
    client.send()
    assert codes(blip) == [132015]
    clock.now += 599
    assert statuses(client)["order_shipped"] == "APPROVED"
    assert {"order_photo"} <= {*names(client)}
    assert "new" not in names(client)
    clock.now += 1
    assert statuses(client)["order_shipped"] == "PAUSED"
    assert "order_photo" not in names(client)
    assert "new" in names(client)


# --- What becomes of a message --------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
def test_only_an_approved_template_is_delivered(
    blip: Simulator, client: Client, status: str
) -> None:
    blip.know(PHONE)
    blip.change_template("order_shipped", status=status)
    client.send()
    expected = {"APPROVED": None, "PAUSED": 132015, "DISABLED": 132016}.get(status, 132001)
    assert codes(blip) == [expected]


def test_template_pauses_by_itself_after_failures(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(name="clinic"))
    blip.configure(templates={"pause_after_failures": 2})
    blip.know(PHONE)
    blip.add_fault(path="messages", receipt=131026, template="order_shipped", times=3)
    client.send(content=content(body("a"), name="order_lost"))
    client.send()
    client.send(content=content(body("a", "b"), name="pedido_enviado"))
    assert statuses(client)["order_shipped"] == "APPROVED"
    client.send()
    assert statuses(client)["order_shipped"] == "PAUSED"
    assert statuses(client)["pedido_enviado"] == "APPROVED"
    clinic = blip.template("order_shipped", "pt_BR", "clinic")
    assert clinic
    assert clinic.status == "APPROVED"

    blip.change_template("order_shipped", status="APPROVED")
    client.send()
    assert statuses(client)["order_shipped"] == "APPROVED"
    client.send()
    assert codes(blip) == [132001, 131026, None, 131026, 131026, None]


def test_failures_pause_no_template_that_is_disabled(blip: Simulator, client: Client) -> None:
    blip.configure(templates={"pause_after_failures": 1})
    blip.know(PHONE)
    client.send(content=content(name="disabled_template"))
    assert statuses(client)["disabled_template"] == "DISABLED"


@pytest.mark.parametrize("code", [131049, 131063])
def test_marketing_of_a_bot_fails(blip: Simulator, client: Client, code: int) -> None:
    blip.put_bot(Bot(marketing=Marketing(code=code)))
    blip.know(PHONE)
    client.send()
    for _ in range(2):
        client.send(content=content(body("a", "b"), name="discount_coupon"))
    assert codes(blip) == [None, 131008, 131008]  # what does not fit says so first
    blip.clear()
    blip.know(PHONE)
    blip.change_template("order_shipped", category="MARKETING")
    for _ in range(2):
        client.send()
    assert codes(blip) == [code, code]
    assert f"(#{code})" in blip.inbox()[0]["reason"]["description"]


def test_first_marketing_messages_to_each_recipient_fail(blip: Simulator, client: Client) -> None:
    bot = {"name": "simulated", "marketing": {"code": 131049, "first": 2}}
    assert client.http.put("/_simulator/bots", json=bot).status_code == 204
    blip.change_template("order_shipped", category="MARKETING")
    other = blip.know("+5511999998888")
    blip.know(PHONE)
    for _ in range(3):
        client.send()
    client.send(other)
    client.send(content=content(body("a", "b"), name="pedido_enviado"))
    assert codes(blip) == [131049, 131049, None, 131049, None]


MEANINGS = {
    131049: "healthy ecosystem",
    131026: "undeliverable",
    131048: "Spam",
    131064: "classification",
    131063: "Marketing",
    132015: "paused",
    132016: "disabled",
    131050: "stopped",
    130472: "experiment",
    131047: "Re-engagement",
}


@pytest.mark.parametrize("code", MEANINGS)
def test_every_code_that_asks_for_something_is_set_by_rule(
    blip: Simulator, client: Client, code: int
) -> None:
    blip.know(PHONE)
    blip.add_fault(path="messages", receipt=code, template="order_shipped")
    client.send()
    [entry] = blip.inbox()
    assert entry["reason"]["code"] == code
    assert f"(#{code})" in entry["reason"]["description"]
    assert MEANINGS[code] in entry["reason"]["description"]


# --- Faults ---------------------------------------------------------------------------------------


def ask(client: Client, uri: str = PLAIN) -> httpx.Response:
    return client.post("/commands", {"id": "c", "method": "get", "uri": uri, "to": GATEWAY})


def test_lists_misbehave_by_rule(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="templates", failure=81, times=1)
    blip.add_fault(path="templates", status=503, times=1)
    blip.add_fault(path="templates", body="<html>", times=1)
    blip.add_fault(path="templates", body={"status": "success", "resource": {}}, times=1)
    blip.add_fault(path="templates", drop=True, times=1)
    blip.add_fault(path="templates", hang=True, times=1)
    assert ask(client).json()["reason"]["code"] == 81
    assert ask(client).status_code == 503
    assert ask(client).text == "<html>"
    assert ask(client).json()["resource"] == {}
    with pytest.raises(httpx.RemoteProtocolError):
        ask(client)
    client.http.timeout = httpx.Timeout(0.2)
    with pytest.raises(httpx.ReadTimeout):
        ask(client)
    client.http.timeout = httpx.Timeout(60)
    assert client.command("/ping")["status"] == "success"
    assert "order_shipped" in names(client)


def test_list_of_one_template_misbehaves_by_rule(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="templates", template="order_photo", failure=1)
    assert client.command(f"{ENRICHED}?templateName=order_photo", GATEWAY)["reason"]["code"] == 1
    assert the_only(client, "order_shipped")
    assert names(client)


@pytest.mark.parametrize("envelope", ["data", "items", "list"])
def test_list_is_empty_by_rule(blip: Simulator, client: Client, envelope: str) -> None:
    blip.configure(templates={"envelope": envelope})
    blip.add_fault(path="templates", empty=True)
    resource = client.command(PLAIN, GATEWAY)["resource"]
    assert (resource if envelope == "list" else resource[envelope]) == []


def test_rule_strikes_after_the_first_pages(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="templates", status=500, after=2, times=1)
    seen = [ask(client, f"{PLAIN}?$skip={skip}").status_code for skip in range(4)]
    assert seen == [200, 200, 500, 200]
