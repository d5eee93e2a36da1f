"""A form that publishes requests, checked against the contract before."""

import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import web
from botocore.exceptions import ClientError

from notifier.contract.parse import Parsed, parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.notification import ledger_key
from tests.local.console.pages import Pages, Query, Tab, address
from tests.local.console.state import State

type Json = dict[str, Any]

_SAMPLES = Path(__file__).resolve().parents[4] / "events"
# Of these the id is the point.
_SAME_ID = ("duplicate", "id-conflict")


def send(pages: Pages, form: Query) -> web.Response:
    """Publish a request, and show what becomes of it.

    Args:
        pages: makes the answer.
        form: `request` is the body; `as_is` publishes also what breaks the contract.
    """
    body = _body(form)
    checked = _checked(body)
    if isinstance(checked, InvalidRequest):
        if form.get("as_is") != "yes" or not body:
            return _page(pages, body)
        bot, to = checked.bot, address("/undelivered", q=checked.notification_id)
    else:
        bot, request = checked.request.bot, checked.request
        to = address("/messages", open=ledger_key(request.bot, request.id))
    try:
        pages.state.publish(body, group=bot or "default")
    except ClientError as error:
        problem = f"SQS does not take it: {error.response['Error'].get('Message', error)}"
        return _page(pages, body, problem)
    # The form is not sent again when the page is loaded anew.
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": to})


def check(pages: Pages, form: Query) -> web.Response:
    """Say what the contract says about a request, as a part of the page."""
    html = pages.fragment("verdict", "verdict", _verdict(pages.state, _body(form)))
    return web.Response(text=html, content_type="text/html")


def _body(form: Query) -> str:
    # A browser ends the lines of a form's text as HTTP does.
    return form.get("request", "").replace("\r\n", "\n")


def _page(pages: Pages, body: str, problem: str = "") -> web.Response:
    verdict = _verdict(pages.state, body)
    more = {"request": body, "verdict": verdict, "problem": problem}
    return pages.page("send", {}, HTTPStatus.UNPROCESSABLE_ENTITY, more)


def _context(state: State, query: Query) -> Json:
    samples = sorted(path.name for path in _SAMPLES.glob("*.json"))
    sample = query.get("sample") if query.get("sample") in samples else samples[0]
    body = _anew((_SAMPLES / str(sample)).read_text(encoding="utf-8"), str(sample))
    return {
        "samples": samples,
        "sample": sample,
        "request": body,
        "verdict": _verdict(state, body),
        "problem": "",
    }


def _anew(body: str, sample: str) -> str:
    """Return a sample with an id of its own: the same id is the same notification."""
    checked = _checked(body)
    known = checked.notification_id if isinstance(checked, InvalidRequest) else checked.request.id
    if known is None or any(part in sample for part in _SAME_ID):
        return body
    return body.replace(known, f"{known}-{time.strftime('%H%M%S')}")


def _checked(body: str) -> Parsed | InvalidRequest:
    try:
        return parse(body)
    except InvalidRequest as wrong:
        return wrong


def _verdict(state: State, body: str) -> Json:
    checked = _checked(body)
    if isinstance(checked, InvalidRequest):
        return {"wrong": checked}
    request = checked.request
    known = state.known(request.bot, request.id)
    warning = ""
    if known and known.request:
        same = known.content_hash == checked.content_hash
        follows = "dropped as a repetition" if same else "refused: id_conflict"
        warning = f"This id was published before, so the request will be {follows}."
    return {
        "wrong": None,
        "request": request,
        "warning": warning,
        "bubble": state.preview(request),
    }


TAB = Tab("send", "Send", context=_context, forms={"": send, "/check": check})
