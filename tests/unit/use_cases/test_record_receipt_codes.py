"""What the receipt of a one-time code does, whose request is kept without the code."""

import json

import pytest

from notifier.domain.failures import Reason
from notifier.use_cases.record_receipt import ReceiptOutcome
from tests.support.builders import PHONE
from tests.unit.use_cases.receipt_case import Case

UNREACHABLE = 131026
TEMPLATE_PAUSED = 132015
RATE_LIMITED = 130429
CAPPED = 131049


@pytest.fixture
def case() -> Case:
    return Case(template={"name": "login_code", "language": "pt_BR", "otp": "418205"})


@pytest.mark.parametrize("code", [RATE_LIMITED, CAPPED, TEMPLATE_PAUSED, UNREACHABLE])
def test_undelivered_code_is_a_dead_letter_without_it_at_once(case: Case, code: int) -> None:
    assert case.record("failed", code) is ReceiptOutcome.DEAD_LETTER

    (letter,) = case.world.dead_letters.letters
    template = json.loads(letter.body)["template"]
    assert template == {"name": "login_code", "language": "pt_BR", "otp": "(removed)"}
    expected = Reason.RECIPIENT_CAPPED if code == CAPPED else Reason.UNDELIVERED
    assert letter.reason is expected
    assert case.item["status"] == "failed"


def test_paused_template_of_a_code_is_held(case: Case) -> None:
    case.record("failed", TEMPLATE_PAUSED)
    assert case.paused == [("default", "login_code", "pt_BR")]


def test_unreachable_recipient_of_a_code_is_invalidated(case: Case) -> None:
    assert "address" in case.world.identities_table.get(f"default/{PHONE}")

    case.record("failed", UNREACHABLE)

    assert "address" not in case.world.identities_table.get(f"default/{PHONE}")
