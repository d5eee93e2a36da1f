"""The tabs, in the order in which they stand."""

from tests.local.console.tabs import events, messages, send, templates, undelivered

TABS = (messages.TAB, undelivered.TAB, events.TAB, templates.TAB, send.TAB)
