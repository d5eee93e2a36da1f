"""The BLiP simulator: faults on purpose, distance and magic numbers."""

from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.integration.simulator.client import (
    COMMAND,
    GATEWAY,
    IDENTITY,
    Client,
    Json,
    body,
    content,
    message,
)
from tests.local.blip import Bot, Simulator, wait_until
from tests.local.blip.faults import Fault, magic_numbers
from tests.local.blip.settings import Delay
from tests.support.builders import PHONE

# --- Faults ---------------------------------------------------------------------------------------


def test_fault_status_applies_before_or_after_accepting(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="messages", status=503, times=1, headers={"X-A": "b"})
    blip.add_fault(path="messages", status=504, accept=True, times=1)
    blip.add_fault(path="messages", status=400, code=24, times=1)
    blip.add_fault(path="messages", status=302, headers={"Location": "/other"}, times=1)
    first = client.send(id="refused")
    assert (first.status_code, first.content, first.headers["X-A"]) == (503, b"", "b")
    assert client.send(id="taken").status_code == 504
    assert client.send(id="wrong").json()["code"] == 24
    assert client.send(id="moved").headers["Location"] == "/other"
    assert client.send(id="usual").status_code == 202
    assert [entry["id"] for entry in blip.inbox()] == ["taken", "usual"]


# Each may concern one request only: 401, 403 and 405 need not speak of the key or the bot.
POISON = [(401, None), (401, 34), (403, None), (403, 42), (403, 83), (403, 87), (404, None)]
POISON += [(404, 42), (405, None), (405, 63), (400, 21), (503, None)]


@pytest.mark.parametrize(("status", "code"), POISON)
@pytest.mark.parametrize(
    "match",
    [{"to": PHONE}, {"to": IDENTITY}, {"text": "order-7"}, {"template": "order_lost"}],
    ids=str,
)
def test_poison_message_alone_is_refused(
    blip: Simulator, client: Client, match: Json, status: int, code: int | None
) -> None:
    blip.know(PHONE)
    blip.add_fault(path="messages", **match, status=status, code=code)
    poison = content(body("Maria", 'order-7 "x"'), name="order_lost")
    for _ in range(2):
        answer = client.send(id="poison", content=poison)
        assert answer.status_code == status
        assert (answer.json()["code"] if answer.content else None) == code
        assert client.send("5511999998888@wa.gw.msging.net", id="other").status_code == 202
    assert [entry["id"] for entry in blip.inbox()] == ["other", "other"]


def test_poison_look_up_alone_fails(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="lookups", to=PHONE, failure=81)
    for _ in range(2):
        assert client.look_up(PHONE)["reason"]["code"] == 81
        assert client.look_up("+5511999998888")["status"] == "success"


def test_message_can_be_accepted_with_a_503(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="messages", status=503, accept=True, body="upstream connect error")
    answer = client.send()
    assert (answer.status_code, answer.text) == (503, "upstream connect error")
    assert len(blip.inbox()) == 1


@pytest.mark.parametrize("code", [131016, 1016, 131000])
def test_sporadic_failure_is_a_receipt_after_accepting(
    blip: Simulator, client: Client, code: int
) -> None:
    blip.put_bot(Bot(messages_per_second=None))
    blip.know(PHONE)
    blip.add_fault(path="messages", receipt=code, probability=0.2)
    rounds: list[list[int | None]] = []
    for seed in (1, 1, 2):
        blip.configure(seed=seed)
        assert {client.send().status_code for _ in range(60)} == {202}
        inbox = blip.inbox(after=str(60 * len(rounds)))
        rounds.append([entry["reason"] and entry["reason"]["code"] for entry in inbox])
    assert {reason for seen in rounds for reason in seen} == {None, code}
    assert rounds[0] == rounds[1] != rounds[2]
    assert rounds[0].count(code) < 30


@pytest.mark.parametrize("accept", [False, True])
def test_connection_is_dropped(blip: Simulator, client: Client, accept: bool) -> None:
    blip.add_fault(path="messages", drop=True, accept=accept)
    with pytest.raises(httpx.RemoteProtocolError):
        client.send()
    assert len(blip.inbox()) == accept
    (request,) = blip.requests
    assert (request.status, request.accepted) == (0, accept)


@pytest.mark.parametrize("accept", [False, True])
def test_request_is_not_answered(blip: Simulator, client: Client, accept: bool) -> None:
    blip.add_fault(path="messages", hang=True, accept=accept)
    client.http.timeout = httpx.Timeout(0.2)
    with pytest.raises(httpx.ReadTimeout):
        client.send()
    assert len(blip.inbox()) == accept


def test_answer_is_delayed(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="messages", latency_seconds=0.4, times=1)
    blip.add_fault(path="messages", answer_latency_seconds=0.4, times=1)
    client.http.timeout = httpx.Timeout(0.2)
    with pytest.raises(httpx.ReadTimeout):
        client.send(id="late")
    assert blip.inbox() == []
    with pytest.raises(httpx.ReadTimeout):
        client.send(id="at once")
    assert blip.inbox()[0]["id"] == "at once"
    assert [entry["id"] for entry in blip.wait_for_messages(2)] == ["at once", "late"]


def test_answer_drips(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="messages", dribble_seconds=0.002)
    answer = client.send()
    assert answer.status_code == 202
    assert answer.elapsed.total_seconds() > 0.05
    assert len(blip.inbox()) == 1


def test_answer_is_truncated(blip: Simulator, client: Client) -> None:
    blip.add_fault(truncate=True)
    for path, envelope in (("/messages", message()), ("/commands", COMMAND)):
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(path, envelope)
    assert len(blip.inbox()) == 1


def test_body_is_not_json(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="lookups", body="<html>", times=1)
    blip.add_fault(path="lookups", body={"status": "success"}, times=1)
    envelope = COMMAND | {"to": GATEWAY, "uri": f"/accounts/{PHONE}"}
    assert client.post("/commands", envelope).text == "<html>"
    assert client.post("/commands", envelope).json() == {"status": "success"}


def test_command_fails_by_rule(blip: Simulator, client: Client) -> None:
    blip.add_fault(path="lookups", failure=85, times=1)
    assert client.look_up(PHONE)["reason"]["code"] == 85
    client.send()
    assert client.look_up(PHONE)["status"] == "success"
    assert blip.inbox()[0]["reason"]["code"] == 42
    assert blip.statistics()["lookups"] == {PHONE: 2}


def test_receipts_are_set_by_rule(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    blip.add_fault(path="messages", receipt=131056, times=1)
    blip.add_fault(path="messages", receipt=86, times=1)
    blip.add_fault(path="messages", events=["accepted"], times=1)
    blip.add_fault(path="messages", events=[], times=1)
    for _ in range(4):
        assert client.send().status_code == 202
    seen = [(e["status"], e["reason"] and e["reason"]["code"]) for e in blip.inbox()]
    assert seen == [("failed", 131056), ("failed", 86), ("accepted", None), ("posted", None)]


@pytest.mark.parametrize(
    ("rule", "struck"),
    [
        ({"path": "messages"}, "aabbcc"),
        ({"path": "commands"}, ""),
        ({"path": "*"}, "aabbcc"),
        ({"bot": "simulated"}, "aabbcc"),
        ({"bot": "other"}, ""),
        ({"template": "order_shipped"}, "aabbcc"),
        ({"template": "order_photo"}, ""),
        ({"to": PHONE}, "aabbcc"),
        ({"to": IDENTITY}, "aabbcc"),
        ({"to": "+5531999998887"}, ""),
        ({"path": "messages", "text": "Mari"}, "aabbcc"),
        ({"path": "messages", "text": "deterministic"}, "aabbcc"),
        ({"path": "messages", "text": "Maria981"}, ""),
        ({"probability": 0}, ""),
        ({"times": 3}, "aab"),
        ({"each": 1}, "abc"),
        ({"every": 2}, "abc"),
        ({"after": 2}, "bbcc"),
        ({"after": 1, "every": 2}, "abc"),
        ({"start": 60}, ""),
        ({"end": 0}, ""),
        ({"end": 60}, "aabbcc"),
    ],
)
def test_rule_matches_by_its_fields(
    blip: Simulator, client: Client, rule: Json, struck: str
) -> None:
    blip.know(PHONE)
    blip.add_fault(**rule, status=500)
    refused = [i for i in "aabbcc" if client.send(id=i).status_code == 500]
    assert "".join(refused) == struck


@pytest.mark.parametrize(
    ("path", "struck"),
    [
        ("commands", ["lookups", "history", "ping", "other"]),
        ("lookups", ["lookups"]),
        ("history", ["history"]),
        ("ping", ["ping"]),
        ("notifications", []),
    ],
)
def test_rule_matches_commands_by_kind(
    blip: Simulator, client: Client, path: str, struck: list[str]
) -> None:
    blip.add_fault(path=path, status=500)
    uris = {
        "lookups": f"lime://wa.gw.msging.net/accounts/{PHONE}",
        "history": "/notifications?id=a",
        "ping": "/ping",
        "other": "/contacts",
    }
    refused = [
        kind
        for kind, uri in uris.items()
        if client.post(
            "/commands",
            COMMAND | {"uri": uri, "to": GATEWAY if kind == "lookups" else "postmaster@msging.net"},
        ).status_code
        == 500
    ]
    assert refused == struck


def test_rule_with_a_probability_applies_sometimes(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(messages_per_second=None))
    blip.add_fault(path="messages", status=500, probability=0.5)
    statuses = [client.send().status_code for _ in range(60)]
    assert {202, 500} == set(statuses)


def test_rules_are_set_by_http(blip: Simulator, client: Client) -> None:
    rules = client.http
    first = rules.post("/_simulator/faults", json={"path": "messages", "status": 500}).json()
    rules.post("/_simulator/faults", json={"path": "ping", "failure": 1})
    assert client.send().status_code == 500
    assert rules.get("/_simulator/faults").json() == [
        {"number": 1, "strikes": 1, "path": "messages", "status": 500},
        {"number": 2, "strikes": 0, "path": "ping", "failure": 1},
    ]
    rules.delete("/_simulator/faults", params={"number": first["number"]})
    assert client.send().status_code == 202
    assert client.command("/ping")["reason"]["code"] == 1
    rules.delete("/_simulator/faults")
    assert client.command("/ping")["status"] == "success"
    assert blip.faults() == []


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("faults", {"path": "message", "status": 500}),
        ("faults", {"pth": "messages"}),
        ("faults", {"path": "messages", "failure": 1}),
        ("faults", {"code": 34}),
        ("faults", {"path": "messages", "empty": True}),
        ("faults", {"path": "templates", "after": -1}),
        ("settings", {"templates": {"envelope": "rows"}}),
        ("settings", {"templates": {"pause_after_failures": 0}}),
        ("templates", {"name": "a", "language": "pt_BR", "category": "OTHER"}),
        ("bots", {"marketing": {"first": 0}}),
        ("faults", {"text": "Maria"}),
        ("faults", []),
        ("settings", {"latency": 1}),
        ("settings", {"receipts": {"urls": "x"}}),
        ("settings", {"distance": {"there": {"mean": 1}}}),
        ("settings", []),
        ("templates", {"name": "A", "language": "pt_BR"}),
        ("bots", {"key": "Key nonsense"}),
        ("bots", {"traffic": {"messages_per_second": 0}}),
        ("bots", {"traffic": {"messages_per_second": 1, "on_share": 0}}),
        ("identities", {"+55": 1}),
    ],
)
def test_invalid_rule_is_400(client: Client, path: str, document: Any) -> None:
    method = "POST" if path == "faults" else "PUT"
    answer = client.http.request(method, f"/_simulator/{path}", json=document)
    assert answer.status_code == 400
    assert answer.text.strip()


def test_every_answer_can_be_delayed(blip: Simulator, client: Client) -> None:
    blip.configure(latency_seconds=0.05, latency_jitter_seconds=0.01)
    for answer in (client.send(), client.post("/commands", COMMAND)):
        assert answer.elapsed.total_seconds() >= 0.05


# --- Distance -------------------------------------------------------------------------------------


HOUR = {"mean_seconds": 3600}


def test_request_on_a_new_connection_counts_when_the_connection_stands(
    blip: Simulator, client: Client
) -> None:
    assert client.send(id="first").status_code == 202
    blip.configure(distance={"set_up": HOUR})
    new = Client(blip)
    new.http.timeout = httpx.Timeout(30, read=0.1)
    with pytest.raises(httpx.ReadTimeout):
        new.send(id="second")
    assert client.send(id="third").status_code == 202
    assert [request.envelope["id"] for request in blip.requests] == ["first", "third"]
    blip.configure(distance={"set_up": {"mean_seconds": 0.02}})
    new.http.timeout = httpx.Timeout(30)
    answer = new.send(id="fourth")
    assert answer.status_code == 202
    assert answer.elapsed.total_seconds() >= 0.02
    assert [entry["id"] for entry in blip.inbox()] == ["first", "third", "fourth"]
    new.http.close()


def test_tls_client_waits_for_its_connection_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "blip.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Simulator(certificate=certificate) as blip:
        headers = {"Authorization": blip.key}
        kept = httpx.Limits(keepalive_expiry=60)
        with httpx.Client(base_url=blip.url, headers=headers, limits=kept, timeout=30) as http:
            assert http.post("/messages", json=message(id="first")).status_code == 202
            blip.configure(distance={"set_up": HOUR})
            with httpx.Client(base_url=blip.url, headers=headers, timeout=0.1) as new:
                with pytest.raises(httpx.ConnectTimeout):
                    new.post("/messages", json=message(id="second"))
                blip.configure(distance={"set_up": {"mean_seconds": 0.02}})
                new.timeout = httpx.Timeout(30)
                assert new.post("/messages", json=message(id="third")).status_code == 202
            blip.add_fault(path="messages", drop=True)
            with pytest.raises(httpx.TransportError):
                http.post("/messages", json=message(id="fourth"))
        ids = [request.envelope["id"] for request in blip.requests]
        assert ids == ["first", "third", "fourth"]


@pytest.mark.parametrize(("way", "accepted"), [("there", 0), ("back", 1)])
def test_request_counts_when_it_arrives(
    blip: Simulator, client: Client, way: str, accepted: int
) -> None:
    blip.configure(distance={way: HOUR})
    client.http.timeout = httpx.Timeout(30, read=0.1)
    with pytest.raises(httpx.ReadTimeout):
        client.send()
    wait_until(lambda: len(blip.inbox()) == accepted)
    assert len(blip.requests) == accepted
    highest = blip.statistics()["highest_per_second"]
    assert highest == (
        {"simulated": {"messages": 1, "notifications": 0, "commands": 0}} if accepted else {}
    )


def test_round_trip_takes_time(blip: Simulator, client: Client) -> None:
    blip.configure(distance={"there": {"mean_seconds": 0.02}, "back": {"mean_seconds": 0.03}})
    for answer in (client.send(), client.post("/commands", COMMAND)):
        assert answer.elapsed.total_seconds() >= 0.05


def test_delay_varies_within_its_spread() -> None:
    delay = Delay(mean_seconds=0.1, spread_seconds=0.04)
    first, again, other = (
        [delay.draw(random) for _ in range(1_000)] for random in map(Random, (1, 1, 2))
    )
    assert first == again != other
    assert 0.06 <= min(first) < 0.065
    assert 0.135 < max(first) <= 0.14
    assert sum(first) / 1_000 == pytest.approx(0.1, rel=0.05)
    assert min(Delay(spread_seconds=1).draw(Random(1)) for _ in range(10)) >= 0


def test_seed_repeats_the_random_choices(blip: Simulator, client: Client) -> None:
    blip.put_bot(Bot(messages_per_second=None))
    blip.add_fault(path="messages", status=500, probability=0.5)
    rounds: list[list[int]] = []
    for changes in ({"seed": 1}, {"history_lag_seconds": 1}, {"seed": 1}, {"seed": 2}):
        client.http.put("/_simulator/settings", json=changes)
        rounds.append([client.send().status_code for _ in range(40)])
    first, without_seed, again, other = rounds
    assert first == again
    assert first not in (without_seed, other)


def test_simulator_becomes_unreachable_and_returns(blip: Simulator, client: Client) -> None:
    with blip.unreachable(), pytest.raises(httpx.ConnectError):
        client.send()
    assert client.send().status_code == 202


def reachable(client: Client) -> bool:
    try:
        return client.post("/commands", COMMAND).status_code == 200
    except httpx.TransportError:
        return False


def test_outage_is_started_by_http(client: Client) -> None:
    assert client.http.post("/_simulator/outage", json={"seconds": 0.3}).status_code == 204
    wait_until(lambda: not reachable(client))
    wait_until(lambda: reachable(client))


# --- The numbers that always do the same ----------------------------------------------------------


@pytest.mark.parametrize("phone", magic_numbers())
def test_magic_number_does_what_its_rule_says(blip: Simulator, client: Client, phone: str) -> None:
    (rule,) = magic_numbers()[phone]
    found = client.look_up(phone)
    if rule.failure:
        assert found["reason"]["code"] == rule.failure
        return
    client.http.timeout = httpx.Timeout(0.3)
    try:
        status = client.send(found["resource"]["alternativeAccount"]).status_code
    except httpx.TransportError:
        status = 0
    no_answer = rule.drop or rule.hang
    assert status == (0 if no_answer else rule.status or 202)
    inbox = blip.inbox()
    assert len(inbox) == rule.accepts
    if rule.receipt:
        assert inbox[0]["reason"]["code"] == rule.receipt
    if rule.events is not None:
        assert [receipt["event"] for receipt in inbox[0]["receipts"]] == rule.events
    if rule.each:
        again = client.send(found["resource"]["alternativeAccount"])
        assert again.status_code == 202


@pytest.mark.parametrize(
    ("phone", "rule"),
    [
        ("+5531900000061", Fault(path="lookups", failure=61)),
        ("+5531900000083", Fault(path="lookups", failure=83)),
        ("+5531900000026", Fault(path="messages", receipt=131026)),
        ("+5531900000024", Fault(path="messages", status=400, code=24)),
        ("+5531900000056", Fault(path="messages", receipt=131056)),
        ("+5531900000086", Fault(path="messages", receipt=86)),
        ("+5531900000504", Fault(path="messages", status=504, accept=True, each=1)),
    ],
)
def test_magic_numbers_that_others_rely_on_are_unchanged(phone: str, rule: Fault) -> None:
    assert magic_numbers()[phone] == [rule]
