"""Templates that WhatsApp pauses, on a simulated clock."""

from tests.faults.hardships.templates import many_templates, paused_template


def test_paused_template_costs_no_dead_letter_no_attempt_and_delays_no_other() -> None:
    assert paused_template(requests=1500, others=120).broken == []


def test_many_templates_are_synced_within_the_plan() -> None:
    assert many_templates(count=1200).broken == []
