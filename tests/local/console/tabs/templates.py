"""What each bot's templates take, and what WhatsApp says of them, which is changed here."""

from http import HTTPStatus

from aiohttp import web

from tests.local.console.pages import Pages, Query, Tab, address

# The forms show these; a change of another attribute is left to the simulator's own paths.
_CHANGED = ("status", "category")


def change(pages: Pages, form: Query) -> web.Response:
    """Change a template's status or category at the simulated BLiP."""
    ref = form.get("ref", "")
    changes = {name: form[name] for name in _CHANGED if name in form}
    try:
        pages.state.change_template(ref, changes)
    except ValueError as error:
        query = {"open": ref}
        return pages.page("templates", query, HTTPStatus.UNPROCESSABLE_ENTITY, {"problem": error})
    # The form is not sent again when the page is loaded anew.
    to = address("/templates", open=ref)
    return web.Response(status=HTTPStatus.SEE_OTHER, headers={"Location": to})


TAB = Tab(
    "templates",
    "Templates",
    items=lambda state: state.templates.items.values(),
    context=lambda _state, _query: {"problem": ""},
    forms={"/change": change},
)
