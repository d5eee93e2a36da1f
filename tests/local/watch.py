"""Follows the local stack while it is up: what is sent, read or fails, and which alarms ring."""

import os
import shlex
import time
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from tests.local.dead_letters import DeadLetters
from tests.local.producer import exports
from tests.local.stack import DEFAULT_PORT_BASE, LocalStack

EVERY_SECONDS = 1.0


def show_what_to_do(stack: LocalStack, page: str | None, console: Console) -> None:
    """Print the addresses, the next commands, and what an application of one's own needs."""
    hints = {}
    if page:
        hints["console"] = page
    if stack.ministack:
        port = stack.ministack.port
        moved = "" if port == DEFAULT_PORT_BASE else f' ARGS="--port-base {port}"'
        hints |= {
            "publish one": f"make publish FILE=my-request.json{moved}",
            "dead letters": f"make failures{moved}",
            "events": f"make events{moved}",
            "logs": f"tail -f {shlex.quote(os.path.relpath(stack.ministack.log))}",
        }
    console.print()
    for title, hint in hints.items():
        console.print(f"  {title:14}{hint}", soft_wrap=True)
    console.print("\n  An application of your own needs these; `make env` prints them again:\n")
    for line in exports(stack.aws.url, stack.requests_queue):
        console.print(f"    {line}", soft_wrap=True)
    console.print(
        "\nCopy events/01-text.json to my-request.json and give it an id of its own: the\n"
        "same id is the same notification, and a repetition is dropped without a word.\n"
        "What is sent, read or fails from now on is told here. Ctrl-C stops everything.\n"
    )


def watch(stack: LocalStack, letters: DeadLetters, console: Console) -> NoReturn:
    """Print what comes in, until an interruption."""
    seen = len(stack.simulator.inbox()) if stack.simulator else 0
    depth = letters.visible()
    followed: dict[str, str] = {}
    rang: set[str] = set()

    def show(text: str, style: str) -> None:
        console.print(Text(f"{time.strftime('%H:%M:%S')} {text}", style), soft_wrap=True)

    while True:
        time.sleep(EVERY_SECONDS)
        ringing = stack.ringing()
        for name in sorted(ringing.keys() - rang):
            show(f"alarm {name}: {ringing[name]}", "bold red")
        rang = set(ringing)
        if stack.simulator:
            for message in stack.simulator.inbox(after=str(seen)):
                seen = message["number"]
                followed[message["id"].partition(":")[0]] = ""
        for key, shown in list(followed.items()):
            item = stack.aws.dynamodb.get_item(
                TableName=stack.ledger_table, Key={"key": {"S": key}}
            ).get("Item", {})
            status = item.get("status", {}).get("S", "")
            if status != shown and item:
                followed[key] = status
                show(f"{item['id']['S']}: {status} ({item['template']['S']})", "green")
            if status == "consumed" or "reason" in item:
                del followed[key]
        if letters.visible() != depth:
            for letter in letters.collect():
                named = f" {letter.notification_id}" if letter.notification_id else ""
                detail = letter.failure.get("detail")
                show(
                    f"dead letter{named}: {letter.reason}" + (f": {detail}" if detail else ""),
                    "red",
                )
            letters.give_back()
            depth = letters.visible()
