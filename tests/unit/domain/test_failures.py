"""What is logged of an unexpected error."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from notifier.domain.failures import Failure, Reason, Rejected, Throttled, Transient, crash_facts


def test_aws_error_is_logged_by_operation_and_code_without_its_message() -> None:
    with pytest.raises(ClientError) as raised:
        raise ClientError(
            {"Error": {"Code": "AccessDeniedException", "Message": "+5531999998888 may not"}},
            "UpdateItem",
        )
    facts = crash_facts(raised.value)

    assert facts["error"] == "ClientError"
    assert (facts["operation"], facts["code"]) == ("UpdateItem", "AccessDeniedException")
    assert "test_failures.py" in str(facts["stack"])
    assert "5531999998888" not in json.dumps(facts)


def test_unexpected_error_is_logged_by_type_and_place() -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - its message is what must not show
        raise ValueError("+5531999998888")
    facts = crash_facts(raised.value)

    assert facts.keys() == {"error", "stack"}
    assert facts["error"] == "ValueError"


@pytest.mark.parametrize(
    "fail",
    [
        partial(Transient, "slowly", code=34),
        partial(Throttled, "slowly", code=34, retry_after_seconds=17),
        partial(Rejected, Reason.REJECTED, "slowly", code=34),
    ],
)
def test_every_failure_has_its_sentence_and_code(fail: Callable[[], Failure]) -> None:
    failure = fail()

    assert (str(failure), failure.detail, failure.code) == ("slowly", "slowly", 34)


def network_errors() -> list[BotoCoreError]:
    """Return one of each of botocore's errors that the network causes, and not AWS."""
    needed: dict[str, Any] = {"endpoint_url": "https://a.invalid", "error": "e", "proxy_url": "p"}
    kinds: list[Any] = [HTTPClientError, *subclasses(HTTPClientError)]
    return [kind(**needed) for kind in kinds]


def subclasses(kind: type[BotoCoreError]) -> list[type[BotoCoreError]]:
    children: list[type[BotoCoreError]] = kind.__subclasses__()
    return [each for child in children for each in (child, *subclasses(child))]


@pytest.mark.parametrize("error", network_errors(), ids=lambda error: type(error).__name__)
def test_every_network_error_of_botocore_can_be_logged(error: Exception) -> None:
    """Those that HTTPClientError is the base of have a `response` that is None."""
    assert crash_facts(error)["error"] == type(error).__name__
