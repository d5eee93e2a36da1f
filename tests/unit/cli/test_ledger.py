"""`republish`: what a person types and reads."""

from collections.abc import Iterator
from typing import Any

import pytest

from functions.cli import ledger
from functions.cli.ledger import Republished
from tests.unit.cli.conftest import Run


def test_republish_shows_its_progress_and_where_to_continue(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, str | None]] = []

    def republish(_: Any, since: float, after: str | None) -> Iterator[Republished]:
        asked.append((since, after))
        yield Republished(100, 230, (), "key-100")
        yield Republished(150, 340, ("key-120",))

    monkeypatch.setattr(ledger, "republish", republish)

    code, text = run("republish", "2026-11-26T00:00:00Z")

    assert "100 items scanned, 230 events published; FROM=key-100" in text
    assert "published again: 340 status events of 150 ledger items" in text
    assert "not publishable: key-120" in text
    assert code == 1
    run("republish", "2026-11-25T21:00:00-03:00", "--from", "key-100")
    assert asked == [(1_795_651_200.0, None), (1_795_651_200.0, "key-100")]


@pytest.mark.parametrize("since", ["", "yesterday", "2026-11-26", "2026-11-26T00:00:00"])
def test_republish_refuses_a_time_without_its_zone(run: Run, since: str) -> None:
    code, text = run("republish", since)

    assert code == 2
    assert f"error: SINCE: {since!r} is no time: write it as 2026-11-26T00:00:00Z" in text
