"""Dead letters, and the redrive of an operator: always a dry run first."""

from aiohttp import web

from functions.cli import dead_letters
from notifier.use_cases.redrive_failures.orders import REASONS, RedriveOrder
from tests.local.console.pages import Pages, Query, Tab


def redrive(pages: Pages, form: Query) -> web.Response:
    """Put dead letters back, or show which ones would go.

    Args:
        pages: makes the answer.
        form: `reason`, `id` and `bot` choose; empty, all. Without `execute` it is a dry run.
    """
    reason, dry_run = form.get("reason", ""), form.get("execute") != "yes"
    if reason and reason not in REASONS:
        return web.Response(status=400, text=f"There is no reason {reason}.\n")
    order = RedriveOrder(
        reasons=[reason] if reason else REASONS,
        bot=form.get("bot") or None,
        ids=[form["id"]] if form.get("id") else None,
        each=True,
        dry_run=dry_run,
    )
    report = pages.state.redrive(
        lambda sources: dead_letters.redrive(sources, order, lambda _scanned, _depth: None)
    )
    chosen = {name: form.get(name, "") for name in ("reason", "id", "bot")}
    more = {"redrive": report.as_json(), "order": chosen | {"dry_run": dry_run}}
    return pages.page("undelivered", {}, more=more)


TAB = Tab(
    "undelivered",
    "Not delivered",
    items=lambda state: state.letters.values(),
    forms={"/redrive": redrive},
)
