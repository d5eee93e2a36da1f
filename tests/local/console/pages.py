"""Makes the pages: what a tab is, and how its items become HTML, whole or one at a time.

A tab is a module in `tabs/` and a template of the same name in `templates/`. If it has items, the
template has two macros: `row`, one item in the list, and `detail`, everything about one.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tests.local.console.state import State, shown_number

type Json = dict[str, Any]
type Query = Mapping[str, str]

MAX_ROWS = 100


class Item(Protocol):
    """One entry of a tab's list."""

    version: int

    @property
    def ref(self) -> str:
        """Names it among all items of its tab."""

    @property
    def place(self) -> tuple[float, int]:
        """Where it stands among those of its tab: the largest one first."""

    @property
    def number(self) -> str:
        """The recipient's phone number; empty if it is not known."""

    @property
    def searched(self) -> str:
        """What a search looks at, one thing a line."""


@dataclass(frozen=True)
class Tab:
    """One tab.

    Attributes:
        name: of its path and its template.
        items: what it lists, oldest first; None if it lists nothing.
        context: what its template needs beside that as `page`, from the address.
        forms: what takes the forms that are sent to it, by the path below its own.
    """

    name: str
    title: str
    items: Callable[[State], Iterable[Item]] | None = None
    context: "Callable[[State, Query], Json]" = lambda _state, _query: {}
    forms: "Mapping[str, Callable[[Pages, Query], web.Response]]" = field(default_factory=dict)


class Pages:
    """Makes the pages of all tabs. Its methods wait for the stack: call them in a thread."""

    def __init__(self, state: State, tabs: Sequence[Tab]) -> None:
        self.state = state
        self.tabs = {tab.name: tab for tab in tabs}
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).with_name("templates")),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "iso": _iso,
            "clock": _clock,
            "number": shown_number,
            "pretty": _pretty,
        }
        self._templates.globals |= {"address": address}

    def page(
        self, name: str, query: Query, status: int = 200, more: Json | None = None
    ) -> web.Response:
        """Return a tab's page as it is now.

        Args:
            name: the tab's.
            query: the address's: `q` is searched for, `open` names the item to show, and
                `before` one whose elders are listed.
            status: of the answer.
            more: what its template gets as `page`, in place of what the address makes it.
        """
        tab = self.tabs[name]
        with self.state.lock:
            self.state.refresh()
            search = query.get("q", "")
            found = self._found(tab, search)
            before = query.get("before", "")
            refs = [item.ref for item in found]
            if before in refs:
                found = found[refs.index(before) + 1 :]
            wanted = query.get("open", "")
            chosen = next((item for item in found if item.ref == wanted), None)
            shown = chosen or (found[0] if found and not wanted else None)
            template = "list.html" if tab.items else f"{name}.html"
            context = {
                "tab": tab,
                "tabs": self.tabs.values(),
                "counts": self._counts(search),
                "search": search,
                "rows": found[:MAX_ROWS],
                "older": found[MAX_ROWS - 1].ref if len(found) > MAX_ROWS else None,
                "is_newest": not before,
                "wanted": wanted,
                "shown": shown,
                "live": address(
                    f"/{name}/live",
                    run=self.state.run,
                    after=self.state.version,
                    q=search,
                    open=shown.ref if shown else wanted,
                ),
                "problem": self.state.problem,
                "state": self.state,
            }
            context["page"] = tab.context(self.state, query) | (more or {})
            html = self._templates.get_template(template).render(context)
        return web.Response(text=html, content_type="text/html", status=status)

    def fragment(self, name: str, macro: str, *arguments: Any) -> str:
        """Return what a macro of a tab's template makes."""
        html: str = getattr(self._templates.get_template(f"{name}.html").module, macro)(*arguments)
        return html

    def news(self, name: str, query: Query, after: int) -> tuple[int, list[tuple[str, Json]]]:
        """Return the version now, and what has changed since another one, as events.

        Args:
            name: the tab's.
            query: as of `page`.
            after: that version.
        """
        tab = self.tabs[name]
        with self.state.lock:
            self.state.refresh()
            if self.state.version == after:
                return after, []
            search, shown = query.get("q", ""), query.get("open", "")
            events: list[tuple[str, Json]] = [
                ("gone", {"ref": ref}) for version, ref in self.state.gone if version > after
            ]
            found = self._found(tab, search)
            for item in reversed(found):
                if item.version > after:
                    events.append(
                        ("row", self._drawn(item, name, "row", item.ref == shown, search))
                    )
                    if item.ref == shown or not shown:
                        events.append(("detail", self._drawn(item, name, "detail", self.state)))
            if shown and all(item.ref != shown for item in found):
                html = self.fragment(name, "missing", self.state, shown)
                events.append(("detail", {"ref": shown, "html": html}))
            events.append(("counts", self._counts(search)))
            return self.state.version, events

    def _drawn(self, item: Item, name: str, macro: str, *arguments: object) -> Json:
        return {"ref": item.ref, "html": self.fragment(name, macro, item, *arguments)}

    def _found(self, tab: Tab, search: str) -> list[Item]:
        """Return the tab's items in which every word of a search is found, newest first."""
        if tab.items is None:
            return []
        items = sorted(tab.items(self.state), key=lambda item: item.place, reverse=True)
        return [item for item in items if _matches(item, search)]

    def _counts(self, search: str) -> Json:
        return {
            tab.name: len(self._found(tab, search))
            for tab in self.tabs.values()
            if tab.items is not None
        }


def address(path: str, **query: object) -> str:
    """Return a path with the parts of a query that are neither None nor empty."""
    chosen = {name: value for name, value in query.items() if value not in {None, ""}}
    return f"{path}?{urlencode(chosen)}" if chosen else path


def _matches(item: Item, search: str) -> bool:
    searched = item.searched.casefold()
    if all(word in searched for word in search.casefold().split()):
        return True
    # A number as people write it.
    digits = "".join(filter(str.isdecimal, search))
    is_number = len(digits) > 3 and not any(map(str.isalpha, search))
    return is_number and digits in item.number


def _iso(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")


def _clock(at: float) -> str:
    """Return a time on this machine's clock, with the date if that is not today's."""
    then = datetime.fromtimestamp(at).astimezone()
    is_today = then.date() == datetime.now().astimezone().date()
    return f"{then:%H:%M:%S}" if is_today else f"{then:%Y-%m-%d %H:%M:%S}"


def _pretty(document: object) -> str:
    """Return JSON with a line for each member; a text that is no JSON as it is."""
    if isinstance(document, str):
        try:
            document = json.loads(document)
        except ValueError:
            return str(document)
    return json.dumps(document, ensure_ascii=False, indent=2)
