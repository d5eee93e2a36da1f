"""The BLiP simulator: receipts, and a webhook that takes them or does not."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.integration.simulator.client import IDENTITY, Client, Json, body, content
from tests.local.blip import Bot, Simulator, wait_until
from tests.support.builders import PHONE


class Webhook:
    """Takes receipts; `statuses` are the first answers, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.posted: list[tuple[dict[str, str], Json]] = []
        self.url = ""

    @contextmanager
    def serve(self) -> Iterator["Webhook"]:
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.posted.append((dict(self.headers), json.loads(raw)))
                self.send_response(webhook.statuses.pop(0) if webhook.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}/receipts"
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def events(self) -> list[str]:
        return [receipt["event"] for _, receipt in self.posted]

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.posted) >= count)


@pytest.fixture
def webhook(blip: Simulator) -> Iterator[Webhook]:
    with Webhook().serve() as webhook:
        headers = {"X-Receipts-Secret": "s3cret"}
        blip.configure(
            receipts={
                "url": webhook.url,
                "headers": headers,
                "retry_seconds": 0.01,
                "delays": {"dispatched": 0.03, "received": 0.06, "consumed": 0.09},
            }
        )
        blip.know(PHONE)
        yield webhook


def test_receipts_are_posted_in_order_with_the_secret(
    blip: Simulator, client: Client, webhook: Webhook
) -> None:
    # Of two that are under way at a time either may arrive first.
    blip.configure(receipts={"at_once": 1})
    client.send()
    webhook.wait_for(4)
    assert webhook.events() == ["accepted", "dispatched", "received", "consumed"]
    for headers, receipt in webhook.posted:
        assert headers["X-Receipts-Secret"] == "s3cret"
        assert headers["Content-Type"] == "application/json"
        assert (receipt["id"], receipt["to"]) == ("m1", "simulated@msging.net")
    assert webhook.posted[0][1]["from"] == "postmaster@msging.net/#az-iris6"
    assert webhook.posted[2][1]["from"] == IDENTITY


def test_failed_receipt_has_its_reason(client: Client, webhook: Webhook) -> None:
    client.send(content=content(body("a")))
    webhook.wait_for(3)
    (failed,) = [receipt for _, receipt in webhook.posted if receipt["event"] == "failed"]
    assert failed["reason"]["code"] == 132000


def test_receipts_can_be_repeated_prefixed_and_addressed(
    blip: Simulator, client: Client, webhook: Webhook
) -> None:
    blip.configure(receipts={"duplicates": 2, "prefix": "fwd:fwd:", "instance": True})
    client.send()
    webhook.wait_for(12)
    assert webhook.events().count("consumed") == 3
    assert {receipt["id"] for _, receipt in webhook.posted} == {"fwd:fwd:m1"}
    assert {receipt["to"] for _, receipt in webhook.posted} == {"simulated@msging.net/instance-1"}
    assert len(client.history("m1")) == 4


def test_receipts_can_be_out_of_order(blip: Simulator, client: Client, webhook: Webhook) -> None:
    delays = {"dispatched": 0.1, "received": 0.2, "consumed": 0.3}
    blip.configure(receipts={"out_of_order": True, "delays": delays})
    for number in range(5):
        client.send(id=f"m{number}")
    webhook.wait_for(20)
    orders = {
        tuple(receipt["event"] for _, receipt in webhook.posted if receipt["id"] == f"m{number}")
        for number in range(5)
    }
    assert orders != {("accepted", "dispatched", "received", "consumed")}


def test_late_receipts_are_in_the_history_at_once(
    blip: Simulator, client: Client, webhook: Webhook
) -> None:
    blip.configure(receipts={"late_seconds": 7200})
    client.send()
    wait_until(lambda: len(client.history("m1")) == 4)
    assert webhook.posted == []
    assert blip.statistics()["receipts"]["waiting"] == 4


def idle(blip: Simulator) -> bool:
    return bool(blip.statistics()["receipts"]["waiting"] == 0)


def test_refused_receipts_are_repeated_and_then_given_up(
    blip: Simulator, client: Client, webhook: Webhook
) -> None:
    blip.configure(
        receipts={"retries": 2, "delays": dict.fromkeys(("dispatched", "received", "consumed"))}
    )
    webhook.statuses = [500, 401]
    client.send(id="a")
    webhook.wait_for(3)
    webhook.statuses = [500] * 3
    client.send(id="b")
    wait_until(lambda: idle(blip))
    report = blip.statistics()["receipts"]
    assert (report["posted"], report["retried"], report["given_up"]) == (1, 4, 1)
    assert report["last_problem"].startswith("HTTP 500")
    assert len(webhook.posted) == 6


def test_unreachable_webhook_is_ignored(blip: Simulator, client: Client) -> None:
    blip.configure(receipts={"url": "http://127.0.0.1:9/", "retries": 0})
    client.send()
    wait_until(lambda: idle(blip))
    assert blip.statistics()["receipts"]["given_up"] == 3
    assert len(client.history("m1")) == 3


def test_bot_without_a_webhook_has_only_its_history(blip: Simulator, webhook: Webhook) -> None:
    bot = Bot(name="builder", webhook=False)
    blip.put_bot(bot)
    client = Client(blip, bot.key)
    client.send()
    assert idle(blip)
    wait_until(lambda: "failed" in client.history("m1"))
    assert webhook.posted == []
    client.http.close()
