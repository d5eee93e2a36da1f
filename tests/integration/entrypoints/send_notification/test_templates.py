"""Templates known before money is spent: the functions SyncTemplates and SendNotification."""

import json
from collections.abc import Iterator
from itertools import batched
from typing import Any

import pytest

from notifier.aws.template_events import DETAIL_TYPE
from notifier.contract.parse import parse
from notifier.entrypoints.sync_templates import SyncTemplates, sync_templates
from notifier.settings import SyncTemplatesSettings
from tests.integration.conftest import Stack
from tests.integration.entrypoints.send_notification.helpers import statuses
from tests.local.blip import Template
from tests.support.builders import a_request
from tests.support.clock import MachineClock
from tests.support.lambda_runtime import a_context
from tests.unit.contract.test_documents import SAMPLES, USABLE
from tests.unit.contract.test_fit import MISFITS

# What is wrong with these is no field.
STATUSES = {"REJECTED": "template_unavailable", "DISABLED": "template_unavailable"}
SENT_ALL_THE_SAME = ["PENDING", "IN_APPEAL", "LIMIT_EXCEEDED"]


@pytest.fixture
def syncing(stack: Stack, shifted_clock: MachineClock) -> Iterator[SyncTemplates]:  # noqa: ARG001
    """Yield the function that has synced once, as the local stack and a deployed one do."""
    settings = SyncTemplatesSettings("identities", stack.aws.secret, "default", 120)
    function = sync_templates(settings)
    sync(function)
    yield function
    function.close()


def sync(function: SyncTemplates) -> dict[str, int]:
    return function.handle(a_context(120))["templates"]


def nothing_was_spent(stack: Stack) -> bool:
    return not stack.blip.inbox() and stack.blip.statistics()["lookups"] == {}


@pytest.mark.parametrize("name", [name for name in USABLE if name < "40"])
def test_every_sample_fits_its_template(
    stack: Stack,
    syncing: SyncTemplates,  # noqa: ARG001
    name: str,
) -> None:
    assert stack.deliver(SAMPLES[name]) == []

    (message,) = stack.blip.inbox()
    assert message["template"] == parse(SAMPLES[name]).request.template.name
    assert message["reason"] is None


def test_requests_that_do_not_fit_are_refused_with_nothing_spent(
    stack: Stack, syncing: SyncTemplates, shifted_clock: MachineClock
) -> None:
    requests = {
        f"order-{number}": (template, expected)
        for number, (template, expected) in enumerate(MISFITS.values())
    }
    assert len(requests) >= 40

    stack.publish(*(a_request(id=name, template=each) for name, (each, _) in requests.items()))
    shifted_clock.advance(3)
    sync(syncing)

    for batch in batched(stack.receive(), 10, strict=False):
        assert stack.handle(list(batch)) == []

    assert nothing_was_spent(stack)
    letters = {letter["notification_id"]: letter for letter in stack.aws.dead_letters()}
    assert letters.keys() == requests.keys()
    for identifier, (_, expected) in requests.items():
        letter = letters[identifier]
        assert letter["reason"] == "template_mismatch"
        fields = [(one["field"], one["problem"]) for one in letter["failure"]["fields"]]
        assert fields == expected
        assert letter["failure"]["attempts"] == 0
    assert set(statuses(stack).values()) == {"rejected"}


@pytest.mark.parametrize("status", STATUSES)
def test_template_that_whatsapp_refuses_is_refused_with_nothing_spent(
    stack: Stack, syncing: SyncTemplates, status: str
) -> None:
    stack.blip.change_template("order_shipped", status=status)
    sync(syncing)

    stack.deliver(a_request())

    assert nothing_was_spent(stack)
    (letter,) = stack.aws.dead_letters()
    assert letter["reason"] == STATUSES[status]


def test_language_that_a_template_lacks_is_refused_with_nothing_spent(
    stack: Stack,
    syncing: SyncTemplates,  # noqa: ARG001
) -> None:
    template = {"name": "order_shipped", "language": "en", "body": ["Maria", "981"]}

    stack.deliver(a_request(template=template))

    assert nothing_was_spent(stack)
    (letter,) = stack.aws.dead_letters()
    assert letter["reason"] == "template_unavailable"
    assert letter["failure"]["detail"] == "the template has no translation en"


@pytest.mark.parametrize("status", SENT_ALL_THE_SAME)
def test_template_of_a_doubtful_status_is_sent(
    stack: Stack, syncing: SyncTemplates, status: str
) -> None:
    stack.blip.change_template("order_shipped", status=status)
    sync(syncing)

    stack.deliver(a_request())

    assert len(stack.blip.inbox()) == 1


def test_template_that_was_approved_or_edited_since_is_sent(
    stack: Stack,
    syncing: SyncTemplates,  # noqa: ARG001
) -> None:
    stack.blip.put_templates(Template(name="just_approved", language="pt_BR", body=1))
    stack.blip.change_template("order_shipped", body=3, text="{{1}} {{2}} {{3}}")
    approved = {"name": "just_approved", "language": "pt_BR", "body": ["Maria"]}
    edited = {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981", "hoje"]}

    stack.deliver(a_request(id="approved", template=approved))
    stack.deliver(a_request(id="edited", template=edited))

    assert statuses(stack) == {"approved": "sent", "edited": "sent"}


def test_paused_template_waits_until_it_is_approved_again(
    stack: Stack, syncing: SyncTemplates
) -> None:
    stack.blip.change_template("order_shipped", status="PAUSED")
    sync(syncing)
    held = a_request(id="held")
    other = a_request(id="other", to="+5531988887777", template={**sample("order_photo")})

    (waits,) = stack.deliver(held, other)

    assert json.loads(waits)["id"] == "held"
    assert statuses(stack) == {"other": "sent"}
    stack.blip.change_template("order_shipped", status="APPROVED")
    sync(syncing)
    stack.deliver(waits)
    assert statuses(stack) == {"other": "sent", "held": "sent"}


def sample(template: str) -> dict[str, Any]:
    """Return the template of the sample that uses it."""
    (found,) = (
        json.loads(text)["template"]
        for name, text in SAMPLES.items()
        if name in USABLE and f'"name": "{template}"' in text and '"Type"' not in text
    )
    return dict(found)


def test_change_of_a_template_is_published_once(stack: Stack, syncing: SyncTemplates) -> None:
    stack.aws.calls.clear()
    stack.blip.change_template("order_shipped", category="MARKETING")

    sync(syncing)
    sync(syncing)

    (entries,) = (given["Entries"] for name, given in stack.aws.calls if name == "PutEvents")
    (entry,) = entries
    assert entry["DetailType"] == DETAIL_TYPE
    detail = json.loads(entry["Detail"])
    assert (detail["name"], detail["category"]) == ("order_shipped", "MARKETING")
    assert detail["previous_category"] == "UTILITY"


RUBBISH: dict[str, dict[str, Any]] = {
    "is away": {"drop": True},
    "fails": {"status": 500},
    "answers rubbish": {"status": 200, "body": "<html>"},
    "answers another shape": {"status": 200, "body": {"status": "success", "resource": {"x": 1}}},
    "knows no such list": {"failure": 62},
    "lists nothing": {"empty": True},
}


@pytest.mark.parametrize("how", RUBBISH)
def test_registry_that_cannot_be_read_refuses_nothing(stack: Stack, how: str) -> None:
    stack.blip.add_fault(path="templates", **RUBBISH[how])
    function = sync_templates(SyncTemplatesSettings("identities", stack.aws.secret, "default", 120))
    try:
        assert sync(function).get("default", 0) == 0
    finally:
        function.close()

    stack.deliver(a_request(template=MISFITS["one value too many"][0]))

    assert len(stack.blip.inbox()) == 1
