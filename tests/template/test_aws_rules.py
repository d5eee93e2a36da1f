"""The template under AWS's own rules, and each rule under a template that breaks it."""

import pytest

from tests.template.aws_rules import BREAKS, RULES, Change, Rule, broken
from tests.template.transformed import Template, load

KEY = "arn:aws:kms:sa-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
EVERYTHING = {
    "CanaryDeployments": "true",
    "KmsKeyArn": KEY,
    "ProducerAccounts": "123456789012,210987654321",
    "PublisherArns": "arn:aws:sns:sa-east-1:123456789012:orders,"
    "arn:aws:events:sa-east-1:123456789012:rule/shop/orders",
    "AlarmEmail": "on-call@example.com",
    "AlarmTopicArn": "arn:aws:sns:sa-east-1:123456789012:alarms",
}
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


def at_bound(bound: str) -> Template:
    """Return the template with every number at its lower or upper bound."""
    parameters = load().source["Parameters"]
    return load(**{name: str(one[bound]) for name, one in parameters.items() if bound in one})


@every_rule
@pytest.mark.parametrize(
    "template",
    [load(), load(**EVERYTHING), at_bound("MinValue"), at_bound("MaxValue")],
    ids=["defaults", "everything on", "lower bounds", "upper bounds"],
)
def test_the_template_keeps_the_rule(rule: Rule, template: Template) -> None:
    assert list(rule(template)) == []


@pytest.mark.parametrize(
    ("rule", "change"),
    [(rule, change) for rule in RULES for change in BREAKS[rule.__name__]],
    ids=[f"{rule.__name__}-{n}" for rule in RULES for n in range(len(BREAKS[rule.__name__]))],
)
def test_the_rule_finds_what_breaks_it(rule: Rule, change: Change) -> None:
    assert list(rule(broken(load(**EVERYTHING), change))) != []


@every_rule
def test_the_rule_names_its_source(rule: Rule) -> None:
    assert ".html" in (rule.__doc__ or "") or "Reference" in (rule.__doc__ or "")
