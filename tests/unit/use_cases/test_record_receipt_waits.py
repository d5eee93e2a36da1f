"""Receipts after which a message is sent again later: for how long it waits, and how often."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from notifier.domain.failures import Reason
from notifier.use_cases.record_receipt import ReceiptOutcome
from tests.support.builders import PHONE
from tests.unit.blip.receipt_envelopes import KEY, LATER
from tests.unit.use_cases.receipt_case import Case, a_receipt

RATE_CODES = [code for codes in LATER.values() for code in codes]
DAY = 86_400


@pytest.mark.parametrize("code", RATE_CODES)
def test_rate_limit_lets_one_next_generation_wait(code: int) -> None:
    case = Case()

    assert case.record("failed", code) is ReceiptOutcome.WAITING

    assert case.waits() == 600
    assert (case.item["waits"], case.item["generation"]) == (["rate limited"], 1)
    assert (case.item.get("reason"), case.item["code"]) == (None, code)
    assert case.timeline()[-1] == ("waiting", 1)
    assert case.world.dead_letters.letters == []
    assert case.published == []
    # However often it is reported; and for the producer it is the same notification.
    before = case.item
    assert case.record("failed", code) is ReceiptOutcome.REPEATED
    assert case.send() == "duplicate"
    assert case.item == before

    assert case.send(generation=1) == "sent"
    assert case.send(generation=1) == "duplicate"
    assert not case.item.keys() & {"wake_shard", "wake_at", "code"}
    assert [sent.message_id for sent in case.world.blip.taken] == [KEY, f"{KEY}:2"]
    assert case.record("failed", code, generation=1) is ReceiptOutcome.REPEATED

    # The second time it is given up.
    assert case.record("failed", code, generation=2) is ReceiptOutcome.DEAD_LETTER
    (letter,) = case.world.dead_letters.letters
    assert (letter.reason, letter.generation) == (Reason.UNDELIVERED, 2)
    assert letter.failure["code"] == code
    assert case.published == [("failed", 2, "undelivered")]
    assert not case.item.keys() & {"wake_shard", "wake_at", "waits"}


def failing(case: Case, *codes: int, start: int = 1) -> list[ReceiptOutcome]:
    """Fail one generation after the other; each next one is sent as soon as it may be."""
    outcomes = []
    for generation, code in enumerate(codes, start):
        outcomes.append(case.record("failed", code, generation=generation))
        if outcomes[-1] is ReceiptOutcome.WAITING:
            case.world.clock.advance(case.waits())
            assert case.send(generation=generation) == "sent"
    return outcomes


CAPPED = [131049, 130472, 472]


@pytest.mark.parametrize("code", CAPPED)
def test_capped_message_waits_longer_each_time_and_is_given_up_in_the_end(code: int) -> None:
    case, waited = Case(), []
    for generation in (1, 2, 3):
        assert case.record("failed", code, generation=generation) is ReceiptOutcome.WAITING
        waited.append(case.waits())
        assert case.send(generation=generation) == "sent"

    assert case.record("failed", code, generation=4) is ReceiptOutcome.DEAD_LETTER

    # The middle of a jitter of ten per cent.
    assert waited == pytest.approx([hours * 3600 * 1.05 for hours in (24, 48, 96)])
    (letter,) = case.world.dead_letters.letters
    assert (letter.reason, letter.failure["code"]) == (Reason.RECIPIENT_CAPPED, code)
    assert (case.item["status"], case.item["reason"]) == ("failed", "recipient_capped")
    assert case.published == [("failed", 4, "recipient_capped")]
    assert "address" in case.world.identities_table.get(f"default/{PHONE}")


def test_limits_of_recipient_and_account_share_one_ladder() -> None:
    case = Case()

    outcomes = failing(case, 131049, 131048, 131049, 131064)

    assert outcomes == [ReceiptOutcome.WAITING] * 3 + [ReceiptOutcome.DEAD_LETTER]
    assert case.world.dead_letters.letters[0].reason is Reason.UNDELIVERED
    assert case.world.meter.counts["account_limited"] == 2


def test_short_wait_between_two_long_ones_does_not_begin_the_ladder_anew() -> None:
    case = Case()
    failing(case, 131049, 131056)

    assert case.record("failed", 131049, generation=3) is ReceiptOutcome.WAITING
    assert case.waits() == pytest.approx(1.05 * 2 * DAY)
    assert case.item["waits"] == ["recipient capped", "rate limited", "recipient capped"]


def test_rate_limit_after_a_long_wait_is_the_first_in_a_row() -> None:
    case = Case()

    outcomes = failing(case, 131056, 131049, 131056, 131016)

    assert outcomes == [ReceiptOutcome.WAITING] * 3 + [ReceiptOutcome.DEAD_LETTER]


@pytest.mark.parametrize("code", [131048, 131063, 131064, 471])
def test_limit_of_the_account_waits_and_is_counted(code: int) -> None:
    case = Case()

    assert case.record("failed", code) is ReceiptOutcome.WAITING

    assert case.waits() == pytest.approx(1.05 * DAY)
    assert case.world.meter.counts["account_limited"] == 1
    assert "broken" not in case.bot


def test_message_of_a_paused_template_waits_for_minutes_and_its_template_is_held() -> None:
    case = Case()

    assert case.record("failed", 132015) is ReceiptOutcome.WAITING

    assert case.waits() == 600
    assert case.paused == [("default", "order_shipped", "pt_BR")]


def test_message_of_a_paused_template_waits_twenty_times_at_most() -> None:
    case = Case()

    outcomes = failing(case, *[132015] * 21)

    assert outcomes == [ReceiptOutcome.WAITING] * 20 + [ReceiptOutcome.DEAD_LETTER]
    assert case.world.dead_letters.letters[0].reason is Reason.UNDELIVERED


@pytest.mark.parametrize(("seconds", "holds"), [(3599, True), (3600, False)])
def test_old_message_does_not_hold_its_template(seconds: float, *, holds: bool) -> None:
    case = Case()
    case.world.clock.advance(seconds - 1)  # the last one passes as the receipt is recorded

    assert case.record("failed", 132015) is ReceiptOutcome.WAITING

    assert bool(case.paused) == holds


def of_category(category: str | None) -> Case:
    """Return a case whose template was of that category at the claim."""
    case = Case()
    if category is not None:
        case.world.ledger_table.items[KEY]["category"] = category
    return case


def test_marketing_to_an_unreachable_recipient_waits_once_and_keeps_the_identity() -> None:
    case = of_category("MARKETING")

    assert case.record("failed", 131026) is ReceiptOutcome.WAITING

    assert case.waits() == pytest.approx(1.05 * DAY)
    assert "address" in case.world.identities_table.get(f"default/{PHONE}")
    case.send(generation=1)
    case.world.ledger_table.items[KEY]["category"] = "MARKETING"
    assert case.record("failed", 131026, generation=2) is ReceiptOutcome.DEAD_LETTER
    assert case.world.dead_letters.letters[0].reason is Reason.UNDELIVERED
    assert "address" not in case.world.identities_table.get(f"default/{PHONE}")


@pytest.mark.parametrize("category", ["UTILITY", "AUTHENTICATION", None])
def test_other_messages_to_an_unreachable_recipient_end_at_once(category: str | None) -> None:
    case = of_category(category)

    assert case.record("failed", 131026) is ReceiptOutcome.DEAD_LETTER

    assert case.world.dead_letters.letters[0].reason is Reason.UNDELIVERED
    assert "address" not in case.world.identities_table.get(f"default/{PHONE}")


def test_recipient_who_opted_out_is_a_dead_letter_of_its_own() -> None:
    case = Case()

    assert case.record("failed", 131050) is ReceiptOutcome.DEAD_LETTER

    assert case.world.dead_letters.letters[0].reason is Reason.OPTED_OUT
    assert case.published == [("failed", 1, "opted_out")]


def valid_for(seconds: float) -> str:
    moment = datetime.fromtimestamp(Case().world.clock.now() + seconds, UTC)
    return moment.isoformat()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (131049, Reason.RECIPIENT_CAPPED),
        (131048, Reason.UNDELIVERED),
        (131056, Reason.UNDELIVERED),
        (132015, Reason.UNDELIVERED),
    ],
)
def test_wait_that_would_be_over_too_late_is_none(code: int, reason: Reason) -> None:
    wait = 1.05 * DAY if code in {131048, 131049} else 600
    # The receipt comes after a second.
    late, in_time = (Case(valid_until=valid_for(1 + wait + more)) for more in (0, 1))

    assert late.record("failed", code) is ReceiptOutcome.DEAD_LETTER
    assert in_time.record("failed", code) is ReceiptOutcome.WAITING

    assert late.world.dead_letters.letters[0].reason is reason


@pytest.mark.parametrize("code", [131049, 131048, 131056, 132015])
@pytest.mark.parametrize("body", ["", "{}"])
def test_request_that_cannot_be_read_does_not_wait(code: int, body: str) -> None:
    case = Case()
    case.world.ledger_table.items[KEY]["request"] = body

    assert case.record("failed", code) is ReceiptOutcome.DEAD_LETTER

    assert case.paused == []


def test_wait_is_random_within_its_bounds() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    for code in (131056, 131049):
        case = Case()
        replace(case.receipts, uniform=uniform).record(a_receipt("failed", code))
        assert case.waits() == pytest.approx({131056: 900, 131049: 1.1 * DAY}[code])

    assert asked == [(300, 900), (1, 1.1)]


def test_redrive_waits_as_often_as_the_first_time() -> None:
    case = Case()
    failing(case, 131056, 131056)
    assert case.item["status"] == "failed"
    assert case.send(generation=2) == "sent"

    assert case.record("failed", 131056, generation=3) is ReceiptOutcome.WAITING
    assert case.item["waits"] == ["rate limited"]


def test_dead_letter_of_the_sending_function_ends_the_row_of_waits() -> None:
    case = Case(valid_until=valid_for(2 * DAY))
    failing(case, 131056)
    case.record("failed", 131049, generation=2)
    case.world.clock.advance(3 * DAY)

    assert case.send(generation=2) == "dead_letter"

    assert (case.item["status"], case.item["reason"]) == ("expired", "expired")
    assert "waits" not in case.item


def test_wait_of_a_redrive_keeps_its_count() -> None:
    case = Case()
    case.record("failed", 131047)
    case.sandbox.deliver(replace(case.world.queued(case.body, generation=1), redrives=3))

    case.record("failed", 131056, generation=2)

    entry = case.sandbox.ledger.read(KEY)
    assert entry is not None
    assert (entry.generation, entry.redrives) == (2, 3)
