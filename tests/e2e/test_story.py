"""README.md's story of a failure, word by word, as a newcomer walks it."""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from notifier.domain.notification import ledger_key
from tests.e2e.running import processes_of, running_command
from tests.local.machine import HOST, PATIENCE_SECONDS, ROOT, require_free, wait_until

KEY = ledger_key("default", "refund-1")
# No command takes these from the `make` that runs the tests.
FROM_MAKE = {"ARGS", "BOT", "FILE", "ID", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "STACK"}
A_NUMBER = re.compile(r"\b55\d{10,11}\b")
ORDER = {
    "id": "order-1",
    "to": "+5531900001002",
    "template": {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981"]},
}


def commands() -> list[str]:
    """Return the commands of the story, each with all of its lines."""
    _, _, story = (ROOT / "README.md").read_text().partition("\n## When something fails\n")
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```$", story.partition("\n## ")[0])
    found, begun = [], ""
    for line in "".join(blocks).splitlines(keepends=True):
        begun += line
        parsed = subprocess.run(
            ["bash", "-n"],  # noqa: S607 - as on every machine
            input=begun,
            capture_output=True,
            text=True,
            check=False,
        )
        # Of a here-document without its end bash only warns.
        if not parsed.returncode and not parsed.stderr:
            found.append(begun)
            begun = ""
    assert not begun
    return found


class Person:
    """A newcomer at two terminals: `make run` is up in one of them."""

    def __init__(self, folder: Path, port: int, other_terminal: Path) -> None:
        self._folder = folder
        self._port = port
        self._other_terminal = other_terminal
        # The project's folder, but what the commands write into it is not left there.
        folder.mkdir()
        for path in ROOT.iterdir():
            (folder / path.name).symlink_to(path)

    def types(self, command: str) -> str:
        """Run a command, against this test's ports; give what it shows."""
        kept = {name: value for name, value in os.environ.items() if name not in FROM_MAKE}
        run = subprocess.run(  # noqa: S603 - out of our own README
            ["bash", "-c", command.replace(":4567/", f":{self._port + 1}/")],  # noqa: S607 - likewise
            cwd=self._folder,
            env=kept | {"MAKEFLAGS": f" -- STACK_OPTION=--port-base\\ {self._port}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}"
        assert not A_NUMBER.search(run.stdout), f"{command}\n{run.stdout}"
        return run.stdout

    def is_told(self, text: str) -> bool:
        """Return whether `make run` has printed it."""
        told = self._other_terminal.read_text()
        assert not A_NUMBER.search(told), told
        return text in told

    def waits_for(self, text: str) -> None:
        wait_until(lambda: self.is_told(text), f"`make run` to tell {text!r}", every=0.1)

    def inbox(self) -> list[str]:
        """Return the ids of the messages that BLiP took."""
        url = f"http://{HOST}:{self._port + 1}/_simulator/inbox"
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
            messages: list[dict[str, Any]] = json.load(answer)
        return [message["id"] for message in messages]


def has_row(shown: str, *cells: str) -> bool:
    return bool(re.search(rf"(?m)^{' +'.join(map(re.escape, cells))}( |$)", shown))


@pytest.mark.skipif(not shutil.which("curl"), reason="the story has a template approved by curl")
def test_a_failure_is_told_fixed_and_delivered_as_the_readme_has_it(
    tmp_path: Path, port_base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy of this machine must not be asked for 127.0.0.1.
    monkeypatch.setenv("no_proxy", HOST)
    write, publish, failures, approve, dry_run, redrive, notification = commands()
    terminal, order = tmp_path / "terminal", tmp_path / "order.json"
    order.write_text(json.dumps(ORDER))
    with running_command(port_base, terminal, "--publish", order) as make_run:
        person = Person(tmp_path / "project", port_base, terminal)
        person.waits_for("Ctrl-C")
        assert person.is_told(f"http://{HOST}:{port_base + 2}/")
        assert not person.is_told("alarm")

        person.types(write)
        assert person.types(publish).startswith("1 request published:\n  refund-1\n")
        person.waits_for("dead letter refund-1: undelivered: BLiP reports reason 132001")
        person.waits_for("alarm DeadLettersAlarm: ")
        assert person.inbox() == [ledger_key("default", "order-1"), KEY]

        # As `make run` says how to publish: a typo in a field.
        order.write_text(json.dumps(ORDER | {"id": "order-2", "too": ORDER["to"]}))
        [offered] = re.findall(r"publish one +(.*)", terminal.read_text())
        person.types(f"{offered.replace('my-request.json', str(order))} ARGS=--as-is")
        person.waits_for("dead letter order-2: invalid: too: ")

        shown = person.types(failures)
        assert has_row(shown, "refund-1", "default", "order_refunded", "undelivered", "132001")
        assert has_row(shown, "order-2", "default", "order_shipped", "invalid", "-")
        assert "2 of 2 dead letters" in shown

        person.types(approve)
        shown = person.types(dry_run)
        assert has_row(shown, "would go", "undelivered", "default", "order_refunded", "1")
        assert "would go: 1 of 2 dead letters\nNothing was put back" in shown
        assert len(person.inbox()) == 2

        assert "put back: 1 of 2 dead letters" in person.types(redrive)
        person.waits_for("refund-1: consumed (order_refunded)")
        assert person.inbox()[2:] == [f"{KEY}:2"]

        facts, _, timeline = person.types(notification).partition("\ntime ")
        assert has_row(facts, "status", "consumed")
        assert has_row(facts, "recipient", "…1001")
        changes = re.findall(r"(?m)^20\S+ +(\w+) +(\d)\b", timeline)
        first, second = ([status for status, of in changes if of == one] for one in "12")
        assert (first[0], first[-1]) == ("sent", "failed")
        assert (second[0], second[-1]) == ("sent", "consumed")

        assert len(processes_of(port_base)) > 1
        make_run.send_signal(signal.SIGINT)
        assert make_run.wait(PATIENCE_SECONDS) == 130
        wait_until(lambda: not processes_of(port_base), "everything to have ended")
        for port in range(port_base, port_base + 3):
            require_free(port)
