"""The BLiP simulator: look-ups, history and other commands."""

import pytest

from tests.integration.simulator.client import COMMAND, GATEWAY, IDENTITY, Client, Clock, Json
from tests.local.blip import Bot, Simulator, wait_until
from tests.support.builders import PHONE

# --- Look-ups -------------------------------------------------------------------------------------


def test_look_up_answers_as_documented(client: Client) -> None:
    assert client.look_up(PHONE) == {
        "type": "application/vnd.lime.account+json",
        "resource": {
            "alternativeAccount": IDENTITY,
            "identity": IDENTITY,
            "phoneNumber": PHONE,
            "source": "WhatsApp",
        },
        "method": "get",
        "status": "success",
        "id": "c",
        "from": GATEWAY,
        "to": "simulated@msging.net",
        "metadata": {"#command.uri": f"lime://wa.gw.msging.net/accounts/{PHONE}"},
    }


@pytest.mark.parametrize(
    ("phone", "identity"),
    [
        ("+5531999998888", "553199998888"),
        ("%2B5531999998888", "553199998888"),
        ("+553199998888", "553199998888"),
        ("+5511999998888", "5511999998888"),
        ("+551199998888", "5511999998888"),
        ("+5528999998888", "5528999998888"),
        ("+5585999998888", "558599998888"),
        ("+553132221111", "553132221111"),
        ("+12025550123", "12025550123"),
        ("5531999998888", "5531999998888"),
        ("hello", "hello"),
    ],
)
def test_look_up_returns_the_identity(client: Client, phone: str, identity: str) -> None:
    resource = client.look_up(phone)["resource"]
    assert resource["alternativeAccount"] == f"{identity}@wa.gw.msging.net"
    assert "fullName" not in resource


def test_look_up_without_plus_creates_no_identity(blip: Simulator, client: Client) -> None:
    identity = client.look_up("553199998888")["resource"]["alternativeAccount"]
    client.send(identity)
    assert blip.inbox()[0]["reason"]["code"] == 42


@pytest.mark.parametrize(
    "phone",
    ["+", "+abc", "+55", "+553199", "+55319999988881234", "+999123456789", "+55-31-99999-8888"],
)
def test_text_that_is_not_a_number_is_code_61(client: Client, phone: str) -> None:
    answer = client.look_up(phone)
    assert (answer["status"], answer["reason"]["code"]) == ("failure", 61)
    assert "resource" not in answer


def test_look_up_of_a_bot_without_whatsapp_fails(blip: Simulator) -> None:
    bot = Bot(name="chat", whatsapp=False)
    blip.put_bot(bot)
    client = Client(blip, bot.key)
    assert client.look_up(PHONE)["reason"]["code"] == 81
    client.send()
    assert blip.inbox()[0]["reason"]["code"] == 81
    client.http.close()


def test_identity_can_be_any_string(blip: Simulator, client: Client) -> None:
    guid = "0f9c1a52-7c3f-4a43-b2d5-3f1e2d6f7a11@wa.gw.msging.net"
    blip.set_identity(PHONE, guid)
    assert client.look_up(PHONE)["resource"]["alternativeAccount"] == guid
    client.send(guid)
    assert blip.inbox()[0]["status"] == "consumed"


# --- Other commands -------------------------------------------------------------------------------


def test_ping_is_answered(client: Client) -> None:
    answer = client.command("/ping", "postmaster@msging.net")
    assert (answer["status"], answer["type"]) == ("success", "application/vnd.lime.ping+json")
    assert answer["metadata"] == {"#command.uri": "lime://simulated@msging.net/ping"}


@pytest.mark.parametrize(
    ("to", "uri", "method", "code"),
    [
        (None, "ping", "get", 27),
        (None, "http://msging.net/ping", "get", 27),
        (None, "lime:/ping", "get", 27),
        (None, "/pi ng", "get", 27),
        (None, "lime://[", "get", 27),
        (None, "/contacts", "get", 62),
        (None, f"/accounts/{PHONE}", "get", 62),
        (GATEWAY, "/ping", "get", 62),
        (None, "/ping", "delete", 63),
        (GATEWAY, f"/accounts/{PHONE}", "delete", 63),
        (None, "/notifications?id=a", "delete", 63),
        (GATEWAY, "/message-templates", "delete", 63),
        (GATEWAY, "/message-templates/x", "get", 67),
        (None, "/message-templates", "get", 62),
        (GATEWAY, "/accounts/", "get", 67),
        (GATEWAY, f"/accounts/{PHONE}/x", "get", 67),
        (GATEWAY, f"lime://other.gw.msging.net/accounts/{PHONE}", "get", 67),
        (None, "/notifications/a", "get", 67),
        (None, "/notifications", "get", 64),
        (None, "/notifications?id=a&$take=101", "get", 64),
        (None, "/notifications?id=a&$take=0", "get", 64),
        (None, "/notifications?id=a&$skip=-1", "get", 64),
        (None, "/notifications?id=a&$skip=x", "get", 64),
        ("postmaster@elsewhere.net", "/ping", "get", 42),
    ],
)
def test_failed_command_is_200(
    client: Client, to: str | None, uri: str, method: str, code: int
) -> None:
    answer = client.command(uri, to, method=method)
    assert (answer["status"], answer["reason"]["code"], answer["id"]) == ("failure", code, "c")


def test_history_lists_the_events_of_a_message(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    client.send(id="a:2")
    answer = client.command("/notifications?id=a:2", "postmaster@msging.net")
    assert answer["type"] == "application/vnd.lime.collection+json"
    resource = answer["resource"]
    assert resource["itemType"] == "application/vnd.lime.notification+json"
    assert resource["total"] == 4
    for item in resource["items"]:
        assert item["id"] == "a:2"
        assert item["metadata"]["#envelope.timestamp"].isdigit()
    events = sorted(client.history("a%3A2"))
    assert events == ["accepted", "consumed", "dispatched", "received"]


def test_history_is_paged(blip: Simulator, client: Client) -> None:
    blip.configure(receipts={"delays": {"dispatched": 0.001, "received": 0.002, "consumed": 0.003}})
    blip.know(PHONE)
    client.send()
    wait_until(lambda: len(client.history("m1")) == 4)
    assert client.history("m1", "&$skip=1&$take=2") == ["received", "dispatched"]
    assert client.history("m1", "&$skip=4") == []


def test_history_lags_and_forgets(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    client.send()
    blip.configure(history_lag_seconds=60)
    assert client.history("m1") == []
    blip.configure(history_lag_seconds=0, history_seconds=0)
    assert client.history("m1") == []
    blip.configure(history_seconds=3 * 24 * 3600)
    assert len(client.history("m1")) == 4


def test_history_fills_in_order_of_time(blip: Simulator, client: Client, clock: Clock) -> None:
    delays = {"dispatched": 10, "received": 20, "consumed": 30}
    blip.configure(history_lag_seconds=600, receipts={"delays": delays})
    blip.know(PHONE)
    client.send()
    clock.now += 599
    seen = [client.history("m1")]
    for seconds in (1, 10, 10, 10):
        clock.now += seconds
        seen.append(client.history("m1"))
    events = ["consumed", "received", "dispatched", "accepted"]
    assert seen == [events[4 - shown :] for shown in range(5)]


@pytest.mark.parametrize("rule", [{"empty": True}, {"failure": 67}, {"status": 500}])
def test_history_can_be_silent_by_rule(blip: Simulator, client: Client, rule: Json) -> None:
    blip.know(PHONE)
    client.send()
    blip.add_fault(path="history", bot="simulated", **rule)
    for _ in range(2):
        answer = client.post("/commands", COMMAND | {"uri": "/notifications?id=m1"})
        assert answer.status_code == rule.get("status", 200)
        if "empty" in rule:
            assert answer.json()["resource"] == {
                "total": 0,
                "itemType": "application/vnd.lime.notification+json",
                "items": [],
            }
        elif "failure" in rule:
            assert answer.json()["reason"]["code"] == 67
    assert client.command("/ping")["status"] == "success"
    blip.clear_faults()
    assert len(client.history("m1")) == 4


def test_unknown_id_is_an_empty_collection_or_code_67(blip: Simulator, client: Client) -> None:
    assert client.history("unknown") == []
    blip.configure(unknown_history="failure")
    assert client.command("/notifications?id=unknown")["reason"]["code"] == 67


def test_bot_sees_only_its_own_history(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    client.send()
    other = Bot(name="other")
    blip.put_bot(other)
    stranger = Client(blip, other.key)
    assert stranger.history("m1") == []
    stranger.http.close()


def test_notifications_are_accepted(blip: Simulator, client: Client) -> None:
    receipt = {"id": "in-1", "to": IDENTITY, "event": "consumed"}
    assert client.post("/notifications", receipt).status_code == 202
    assert blip.statistics()["notifications"] == {"consumed": 1}
