"""Status events as they go out."""

from tests.local.console.pages import Tab

TAB = Tab("events", "Events", items=lambda state: state.events)
