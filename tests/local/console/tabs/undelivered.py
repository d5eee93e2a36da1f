"""Dead letters, and the redrive of an operator: always a dry run first."""

from http import HTTPStatus
from typing import Any

from aiohttp import web

from functions.cli import dead_letters
from notifier.use_cases.redrive_failures.orders import REASONS, RedriveOrder
from tests.local.console.pages import Pages, Query, Tab, address
from tests.local.console.state import State

type Json = dict[str, Any]

# What chooses letters, in an address and in a form; a part that is left out or empty chooses all.
_PARTS = ("reason", "id", "bot")
_GOING = {"would_redrive", "redriven"}


def redrive(pages: Pages, form: Query) -> web.Response:
    """Put the dead letters back that a dry run has shown."""
    letters = _run(pages.state, form, dry_run=False)["dead_letters"]
    going = sum(letter["outcome"] in _GOING for letter in letters)
    # The form is not sent again when the page is loaded anew.
    to = address("/undelivered", redriven=str(going), staying=str(len(letters) - going))
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": to})


def _context(state: State, query: Query) -> Json:
    chosen = {part: query.get(part, "") for part in _PARTS}
    report = _run(state, query, dry_run=True) if "dry_run" in query else None
    counts = {name: query.get(name, "") for name in ("redriven", "staying")}
    return {"chosen": chosen, "report": report} | counts


def _run(state: State, chosen: Query, *, dry_run: bool) -> Json:
    reason = chosen.get("reason", "")
    order = RedriveOrder(
        reasons=[reason] if reason else REASONS,
        bot=chosen.get("bot") or None,
        ids=[chosen["id"]] if chosen.get("id") else None,
        each=True,
        dry_run=dry_run,
    )
    report = state.redrive(
        lambda sources: dead_letters.redrive(sources, order, lambda _scanned, _depth: None)
    )
    told: Json = report.as_json()
    told["going"] = [one for one in told["dead_letters"] if one["outcome"] in _GOING]
    told["staying"] = [one for one in told["dead_letters"] if one["outcome"] not in _GOING]
    return told


TAB = Tab(
    "undelivered",
    "Not delivered",
    items=lambda state: state.letters.values(),
    context=_context,
    forms={"/redrive": redrive},
)
