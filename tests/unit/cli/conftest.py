"""Commands as a person types them, with a made-up stack behind them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from functions.cli import __main__ as command_line
from functions.cli import stack as stacks

type Json = dict[str, Any]
type Run = Callable[..., tuple[int, str]]


@dataclass
class MadeUpStack:
    """Answers invocations with what a test has put down, in order."""

    answers: list[Json] = field(default_factory=list)
    invoked: list[tuple[str, Json]] = field(default_factory=list)
    name: str = "blip-notifier"
    endpoint: str = "http://127.0.0.1:4566"

    def invoke(self, function: str, event: Json) -> Json:
        self.invoked.append((function, event))
        return self.answers.pop(0)

    def command(self, target: str, variables: str = "", arguments: Sequence[str] = ()) -> str:
        return f"make {target} {variables} {' '.join(arguments)}"


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> MadeUpStack:
    made_up = MadeUpStack()
    monkeypatch.setattr(stacks, "connect", lambda _: made_up)
    return made_up


@pytest.fixture
def run(
    stack: MadeUpStack,  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command; return its exit code, and what it printed with single spaces."""

    def run(*words: str) -> tuple[int, str]:
        code = command_line.main(list(words))
        captured = capsys.readouterr()
        return code, re.sub(r"\s+", " ", captured.out + captured.err)

    return run
