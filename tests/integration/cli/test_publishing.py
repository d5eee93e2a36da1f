"""`publish`, over moto."""

from pathlib import Path

import pytest

from functions.cli.errors import CommandError
from functions.cli.publishing import publish
from tests.integration.cli.deployed import Deployed
from tests.integration.conftest import Stack


def test_files_are_published_as_they_stand(stack: Stack, tmp_path: Path) -> None:
    one, several = tmp_path / "one.json", tmp_path / "several.jsonl"
    one.write_text('{"id":\n "order-1"}\n')
    several.write_text('{"id": "order-2"}\nnot JSON\n')

    assert publish(Deployed(stack.aws), [one, several]) == 3

    groups = [call["MessageGroupId"] for name, call in stack.aws.calls if name == "SendMessage"]
    assert set(groups) == {"default"}

    bodies = [record["body"] for record in stack.receive()]
    assert sorted(bodies) == sorted(['{"id":\n "order-1"}\n', '{"id": "order-2"}', "not JSON"])


def test_a_file_that_cannot_be_read_is_named(stack: Stack, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be read"):
        publish(Deployed(stack.aws), [tmp_path / "nowhere.json"])
