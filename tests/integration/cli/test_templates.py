"""`templates`: what BLiP lists, what each needs, and whether the registry has it."""

import time

import pytest

from functions.cli.bots import one_bot
from functions.cli.errors import CommandError
from functions.cli.templates import Listed, takes, templates
from notifier.aws.table import Table
from notifier.aws.templates import DynamoDbTemplates
from notifier.domain.bots import Bot
from notifier.domain.templates import (
    ButtonKind,
    HeaderKind,
    RegisteredTemplate,
    Shape,
    TemplateStatus,
    Translation,
)
from tests.integration.cli.deployed import Deployed
from tests.integration.conftest import Stack
from tests.local.blip import Template


def listed(stack: Stack, name: str) -> Listed:
    """Return what the command shows of a template."""
    bot = one_bot(Deployed(stack.aws), "default")
    assert isinstance(bot, Bot)
    (found,) = (one for one in templates(Deployed(stack.aws), bot) if one.name == name)
    return found


def test_templates_are_shown_with_what_a_send_has_to_bring(stack: Stack) -> None:
    found = listed(stack, "track_order")

    assert (found.bot, found.language, found.status) == ("default", "pt_BR", "APPROVED")
    assert found.takes == "body 1, button 1 url"
    assert found.registry == "not synced"


def test_registry_is_compared_with_what_blip_lists(stack: Stack) -> None:
    registry = DynamoDbTemplates(Table(stack.aws.dynamodb, "identities"), time.time)
    older = Translation(TemplateStatus.PENDING)
    registry.keep("default", RegisteredTemplate("order_lost", time.time(), {"pt_BR": older}))
    stack.blip.put_templates(Template(name="order_lost", language="pt_BR", body=1))

    assert listed(stack, "order_lost").registry == "older"


def test_bot_that_does_not_answer_is_named(stack: Stack) -> None:
    unreachable = Bot(name="away", key=stack.blip.key, base_url="http://127.0.0.1:9")

    with pytest.raises(CommandError, match=r"^the templates of away: "):
        templates(Deployed(stack.aws), unreachable)


def test_what_a_template_takes_is_said_in_words() -> None:
    card = Shape(HeaderKind.IMAGE, buttons=(ButtonKind.QUICK_REPLY,))
    full = Shape(HeaderKind.TEXT, body=("name", "day"), buttons=(ButtonKind.STATIC, ButtonKind.URL))
    said = {
        takes(Translation(TemplateStatus.APPROVED, shape=full)),
        takes(Translation(TemplateStatus.APPROVED, cards=(card, card))),
        takes(Translation(TemplateStatus.APPROVED)),
        takes(Translation(TemplateStatus.APPROVED, is_understood=False)),
    }

    assert said == {
        "header text, body name, day, button 1 url",
        "2 cards with header image, button 0 quick_reply",
        "nothing",
        "not known",
    }
