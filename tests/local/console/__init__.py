"""The local console: the local stack as a page.

Messages as their recipients see them, what was not delivered, status events as they go out, the
bots' templates, and a form to publish requests. For development only: it shows whole phone numbers
and parameters, and listens on this machine only.

A further tab is one module in `tabs/`, with its template, and its entry in `tabs.TABS`.
"""

from tests.local.console.server import Console, console_of
from tests.local.console.sources import Sources

__all__ = ["Console", "Sources", "console_of"]
