"""The BLiP simulator: what it shows, its settings, and it as a process."""

import json
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.integration.simulator.client import IDENTITY, Client, message
from tests.local.blip import Simulator
from tests.local.blip.faults import MAGIC, magic_numbers
from tests.support.builders import PHONE


def test_inbox_is_read_and_cleared_by_http(blip: Simulator, client: Client) -> None:
    blip.know(PHONE)
    for identifier in "abc":
        client.send(id=identifier)
    inbox = "/_simulator/inbox"
    assert client.http.get(inbox).json() == blip.inbox()

    def ids(**query: Any) -> str:
        return "".join(entry["id"] for entry in client.http.get(inbox, params=query).json())

    assert (ids(id="b"), ids(after=2), ids(limit=2), ids(phone=PHONE)) == ("b", "c", "ab", "abc")
    assert (ids(bot="other"), ids(template="x"), ids(to=IDENTITY)) == ("", "", "abc")
    assert client.http.delete(inbox).status_code == 204
    assert blip.inbox() == []
    assert client.history("a") == []


def test_statistics_are_read_by_http(client: Client) -> None:
    client.look_up(PHONE)
    client.look_up(PHONE)
    client.look_up("+5511999998888")
    client.send()
    client.post("/messages", {})
    seen = client.http.get("/_simulator/statistics").json()
    assert seen["requests"] == {"/commands": {"200": 3}, "/messages": {"202": 1, "400": 1}}
    assert seen["lookups"] == {PHONE: 2, "+5511999998888": 1}
    assert seen["looked_up_never_sent"] == ["+5511999998888"]
    assert seen["kinds"] == {"lookups": 3, "messages": 1}
    assert seen["messages"] == {"accepted": 1, "distinct": 1, "repeated": {}}


def test_concurrent_requests_are_counted(blip: Simulator, client: Client) -> None:
    # Long enough for all of them to begin, however busy the machine is.
    blip.configure(latency_seconds=2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: client.send(id=str(i)), range(4)))
    assert blip.statistics()["most_in_flight"] == {"/messages": 4}


def test_requests_are_kept_with_headers_and_body(blip: Simulator, client: Client) -> None:
    client.send()
    client.http.post("/messages", headers={"Authorization": "Key x"})
    first, second = blip.requests
    assert (first.path, first.kind, first.bot, first.status) == (
        "/messages",
        "messages",
        "simulated",
        202,
    )
    assert first.envelope["id"] == "m1"
    assert first.headers["authorization"] == blip.key
    assert (second.status, second.bot) == (401, None)


def test_settings_are_changed_by_http(client: Client) -> None:
    changes = {"receipts": {"headers": {"Host": "h"}, "delays": {"consumed": None}}}
    client.http.put("/_simulator/settings", json=changes)
    settings = client.http.get("/_simulator/settings").json()
    assert settings["receipts"]["headers"] == {"Host": "h"}
    assert settings["receipts"]["delays"]["consumed"] is None
    assert settings["receipts"]["delays"]["received"] == 0
    assert settings["penalty_seconds"] == 120


def test_bots_and_identities_are_set_by_http(blip: Simulator, client: Client) -> None:
    client.http.put("/_simulator/bots", json={"name": "second", "messages_per_second": 1})
    assert [bot["name"] for bot in client.http.get("/_simulator/bots").json()] == [
        "simulated",
        "second",
    ]
    client.http.put("/_simulator/identities", json={PHONE: "x@wa.gw.msging.net"})
    answer = client.http.post("/_simulator/identities", json={"phone": PHONE})
    assert answer.json() == {"identity": "x@wa.gw.msging.net"}
    client.send("x@wa.gw.msging.net")
    assert blip.inbox()[0]["phone"] == PHONE


def test_simulator_runs_as_a_process() -> None:
    arguments = ["--key", "Ym90OnNlY3JldA==", "--settings", '{"strict_identities": false}']
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "tests.local.blip", *arguments], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        assert started["keys"] == {"bot": "Key Ym90OnNlY3JldA=="}
        answer = httpx.post(
            f"{started['url']}/messages",
            json=message(),
            headers={"Authorization": started["keys"]["bot"]},
        )
        assert answer.status_code == 202
        assert httpx.get(started["inbox"]).json()[0]["bot"] == "bot"
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_simulator_runs_as_a_process_with_tls(tmp_path: Path) -> None:
    certificate = tmp_path / "blip.pem"
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "tests.local.blip", "--certificate", str(certificate)],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        trusting = ssl.create_default_context(cafile=certificate)
        assert started["url"].startswith("https://")
        assert httpx.get(started["inbox"], verify=trusting).json() == []
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 0


def test_help_lists_every_magic_number() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "tests.local.blip", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for phone, row in zip(magic_numbers(), MAGIC.values(), strict=True):
        assert f"{phone}  {row[0]}" in shown.stdout
