"""The tabs, in the order in which they stand."""

from tests.local.console.tabs import events, messages, send, undelivered

TABS = (messages.TAB, undelivered.TAB, events.TAB, send.TAB)
