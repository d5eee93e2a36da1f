"""A client of the simulator, and what it sends."""

import ssl
from typing import Any

import httpx

from tests.local.blip import Simulator

IDENTITY = "553199998888@wa.gw.msging.net"
GATEWAY = "postmaster@wa.gw.msging.net"

TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and httpx would load the system's

type Json = dict[str, Any]


class Client:
    """A bot's client that checks nothing."""

    def __init__(self, blip: Simulator, key: str | None = None) -> None:
        headers = {"Authorization": key or blip.key}
        kept = httpx.Limits(keepalive_expiry=60)
        self.http = httpx.Client(
            base_url=blip.url, headers=headers, timeout=60, verify=TLS, limits=kept
        )

    def post(self, path: str, envelope: Any) -> httpx.Response:
        return self.http.post(path, json=envelope)

    def command(self, uri: str, to: str | None = None, **members: Any) -> Json:
        envelope = {"id": "c", "method": "get", "uri": uri} | ({"to": to} if to else {}) | members
        answer = self.post("/commands", envelope)
        assert answer.status_code == 200, answer.text
        document: Json = answer.json()
        return document

    def look_up(self, phone: str) -> Json:
        return self.command(f"lime://wa.gw.msging.net/accounts/{phone}", GATEWAY)

    def send(self, to: str = IDENTITY, **members: Any) -> httpx.Response:
        return self.post("/messages", message(to, **members))

    def history(self, identifier: str, more: str = "") -> list[str]:
        answer = self.command(f"/notifications?id={identifier}{more}")
        assert answer["status"] == "success", answer
        return [item["event"] for item in answer["resource"]["items"]]


def message(to: str = IDENTITY, **members: Any) -> Json:
    envelope = {"id": "m1", "to": to, "type": "application/json", "content": content()}
    return {name: value for name, value in (envelope | members).items() if value is not None}


def content(*components: Json, name: str = "order_shipped") -> Json:
    language = {"code": "pt_BR", "policy": "deterministic"}
    chosen = list(components) if components else [body("Maria", "981")]
    return {
        "type": "template",
        "template": {"name": name, "language": language, "components": chosen},
    }


def body(*texts: str) -> Json:
    return {"type": "body", "parameters": [{"type": "text", "text": text} for text in texts]}


def header(kind: str, value: Any) -> Json:
    return {"type": "header", "parameters": [{"type": kind, kind: value}]}


class Clock:
    """The simulator's time, which stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


COMMAND = {"id": "c", "method": "get", "uri": "/ping"}
