"""Requests, and what parsing them comes to."""

from typing import Any

import pytest

from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from tests.support.builders import a_request

type Json = dict[str, Any]
CURRENCY = {"type": "currency", "fallback_value": "R$ 10,00", "code": "BRL", "amount_1000": 10000}
LINK = "https://example.com/a.png"
TEMPLATE = {"name": "order_shipped", "language": "pt_BR"}


def request(**fields: Any) -> Json:
    """Return a request with no more than it must have."""
    return a_request(**{"id": "order-981", "template": dict(TEMPLATE)} | fields)


def with_template(**fields: Any) -> Json:
    return request(template=TEMPLATE | fields)


def refused(body: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        parse(body)
    return refusal.value


TEXT = "must be a text"
