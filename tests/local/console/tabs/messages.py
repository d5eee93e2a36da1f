"""Messages as their recipients see them."""

from tests.local.console.pages import Tab

TAB = Tab("messages", "Messages", items=lambda state: state.messages.values())
