"""An outage, a backlog, and a second bot beside it, on a simulated clock."""

import pytest

from tests.faults.blip import Fault
from tests.faults.long_runs import SHORTEST_BETWEEN_PROBES, backlog, outage


@pytest.mark.parametrize("fault", ["refused", "unauthorized"])
def test_outage_costs_no_attempt_and_no_dead_letter(fault: Fault) -> None:
    result = outage(300, 2, fault)

    assert result.broken == []
    assert (result.letters, result.spent) == (0, 0)
    assert result.probes > 0
    assert result.shortest_between_probes >= SHORTEST_BETWEEN_PROBES


def test_backlog_is_sent_at_the_plan_s_rate_and_never_above() -> None:
    result = backlog(2000)

    assert result.broken == []
    assert result.throttled == 0
    assert result.most_per_second <= 50
    assert result.share >= 0.95


def test_second_bot_does_not_wait_for_the_backlog_of_the_first() -> None:
    """As far as SQS's fair queues keep what they promise, which is modelled here."""
    result = backlog(1500, second=20)

    assert result.broken == []
    assert len(result.second_waits) == 20
    assert max(result.second_waits) < 5
