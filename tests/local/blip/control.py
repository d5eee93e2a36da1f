"""What people and tests see and change at run time, under /_simulator/."""

import json
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from tests.local.blip import templates
from tests.local.blip.faults import Fault
from tests.local.blip.lime import Json
from tests.local.blip.server import Blip
from tests.local.blip.settings import Bot

PREFIX = "/_simulator"
_Route = Callable[[dict[str, str], Any], Any]


class Control:
    """The control paths of one simulator."""

    def __init__(self, blip: Blip, outage: Callable[[float], None]) -> None:
        self._blip = blip
        self._routes: dict[str, _Route] = {
            "GET /inbox": self._inbox,
            "DELETE /inbox": lambda _query, _body: blip.clear(),
            "GET /statistics": lambda _query, _body: blip.statistics(),
            "GET /faults": lambda _query, _body: blip.faults.report(),
            "POST /faults": lambda _query, body: add_fault(blip, body).report(),
            "DELETE /faults": lambda query, _body: blip.faults.remove(
                int(query["number"]) if "number" in query else None
            ),
            "GET /templates": lambda query, _body: _templates(blip, query),
            "PUT /templates": lambda _query, body: blip.registry.put(templates.parse(body)),
            "PATCH /templates": self._change_template,
            "DELETE /templates": lambda query, _body: blip.registry.remove(**_chosen(query)),
            "GET /settings": lambda _query, _body: blip.settings.model_dump(),
            "PUT /settings": self._change_settings,
            "GET /bots": lambda _query, _body: [bot.model_dump() for bot in blip.bots.values()],
            "PUT /bots": lambda _query, body: blip.put_bot(Bot.model_validate(body)),
            "PUT /identities": lambda _query, body: blip.overrides.update(_strings(body)),
            "POST /identities": self._know,
            "POST /outage": lambda _query, body: outage(float(body["seconds"])),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.removeprefix(PREFIX)
        route = self._routes.get(f"{request.method} {path}")
        if route is None:
            known = any(name.endswith(f" {path}") for name in self._routes)
            return web.Response(status=405 if known else 404)
        # Thousands of templates are larger than the envelopes that `request.read` allows.
        raw = await request.content.read()
        try:
            result = route(dict(request.query), json.loads(raw) if raw else None)
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
            return web.Response(status=400, text=f"{error}\n")
        if result is None:
            return web.Response(status=204)
        return web.json_response(result)

    def _inbox(self, query: dict[str, str], _body: Any) -> list[Json]:
        return inbox(self._blip, query)

    def _change_template(self, query: dict[str, str], body: Any) -> list[Json]:
        if not query.get("name"):
            raise ValueError("?name= has to name the template")
        if not isinstance(body, dict):
            raise TypeError("an object of the changed attributes is needed")
        changed = self._blip.registry.change(**_chosen(query), changes=body)
        return [template.model_dump() for template in changed]

    def _change_settings(self, _query: dict[str, str], body: Any) -> Json:
        self._blip.change(body)
        return self._blip.settings.model_dump()

    def _know(self, _query: dict[str, str], body: Any) -> Json:
        names = [body["bot"]] if "bot" in body else list(self._blip.bots)
        identities = [self._blip.know(body["phone"], name) for name in names]
        return {"identity": identities[0]}


def add_fault(blip: Blip, rule: Any) -> Fault:
    """Add a rule given as JSON."""
    return blip.faults.add(Fault.model_validate(rule), time.monotonic())


def inbox(blip: Blip, query: dict[str, str]) -> list[Json]:
    """The accepted messages, oldest first.

    Args:
        blip: the simulator.
        query: any of id, bot, to, phone, template; after: only numbers above it; limit: how many.
    """
    after, limit = int(query.get("after", 0)), int(query.get("limit", 1_000_000))
    wanted = {
        name: query[name] for name in ("id", "bot", "to", "phone", "template") if name in query
    }
    now = time.time()
    chosen = (
        message
        for message in blip.messages[after:]
        if all(getattr(message, name) == value for name, value in wanted.items())
    )
    return [message.view(now) for message, _ in zip(chosen, range(limit), strict=False)]


def _chosen(query: dict[str, str]) -> dict[str, Any]:
    """Return what names templates; what is left out names all of them."""
    return {part: query.get(part) for part in ("name", "language", "bot")}


def _templates(blip: Blip, query: dict[str, str]) -> list[Json]:
    """Return all templates, or with `bot` those that this bot has."""
    if "bot" not in query:
        return blip.registry.report()
    return [template.model_dump() for template in blip.registry.of(query["bot"])]


def _strings(body: Any) -> dict[str, str]:
    if not isinstance(body, dict) or not all(isinstance(value, str) for value in body.values()):
        raise ValueError("an object of phone to identity is needed")
    return body
