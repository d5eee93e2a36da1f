"""`rotate-webhook`, over moto and the function that checks the secrets."""

import re

import pytest

from functions.cli.errors import CommandError
from functions.cli.webhook import Rotation, rotate_webhook
from notifier.domain.notification import ledger_key
from tests.integration.cli.deployed import Deployed
from tests.integration.receipts_stack import SECRET, ReceiptsStack, a_receipt
from tests.support.clock import MachineClock

# clinic and clinic-vip are two names of one bot at BLiP.
BOTS = {
    "clinic": {"key": "Key Y2xpbmljOmtleQ=="},
    "clinic-vip": {"key": "Y2xpbmljOmtleQ=="},
    "shop": {"key": "Key c2hvcDprZXk="},
    "new": {"key": "Key REPLACE_ME"},
}
CLINIC = ["clinic", "clinic-vip"]


class Webhook:
    """The webhook as BLiP meets it, and the command that rotates its secrets."""

    def __init__(self, receipts: ReceiptsStack, clock: MachineClock) -> None:
        self._receipts = receipts
        self._clock = clock
        self._deployed = Deployed(receipts.aws, receipts.webhook_secret)
        receipts.aws.put_bots(BOTS)

    def rotate(self, bot: str, *, leaked: bool = False) -> Rotation:
        rotation = rotate_webhook(self._deployed, bot, leaked=leaked)
        self._clock.advance(301)  # every sandbox has the new one
        return rotation

    def lets_in(self, secret: str) -> list[str]:
        """Return the bots whose receipts this secret lets in; `*` stands for all."""
        receipt = a_receipt(ledger_key("clinic", "order-1"), "received")
        if self._receipts.post(receipt, secret=secret)["statusCode"] != 200:
            return []
        (waits,) = self._receipts.waiting()
        bots: list[str] = waits.get("bots", ["*"])
        return bots

    def put(self, text: str) -> None:
        self._receipts.aws.secrets_manager.put_secret_value(
            SecretId=self._receipts.webhook_secret, SecretString=text
        )

    def value(self) -> str:
        return self._receipts.aws.secrets_manager.get_secret_value(
            SecretId=self._receipts.webhook_secret
        )["SecretString"]


@pytest.fixture
def webhook(receipts: ReceiptsStack, clock: MachineClock) -> Webhook:
    return Webhook(receipts, clock)


def test_the_first_rotation_locks_no_bot_out(webhook: Webhook, clock: MachineClock) -> None:
    assert webhook.lets_in(SECRET) == ["*"]

    rotation = webhook.rotate("shop")

    assert rotation.bots == ["shop"]
    assert webhook.lets_in(rotation.secret) == ["shop"]
    assert sorted(webhook.lets_in(SECRET)) == sorted(BOTS)
    clock.advance(24 * 3600)
    assert webhook.lets_in(rotation.secret) == ["shop"]
    assert sorted(webhook.lets_in(SECRET)) == sorted(BOTS.keys() - {"shop"})


def test_the_rotation_of_another_bot_drops_no_previous_secret(
    webhook: Webhook, clock: MachineClock
) -> None:
    shop = webhook.rotate("shop")
    clinic = webhook.rotate("clinic")
    clock.advance(12 * 3600)
    new = webhook.rotate("new")

    assert clinic.bots == CLINIC
    assert webhook.lets_in(clinic.secret) == CLINIC
    assert sorted(webhook.lets_in(SECRET)) == sorted(BOTS)
    clock.advance(12 * 3600)
    assert webhook.lets_in(SECRET) == ["new"]
    clock.advance(12 * 3600)
    assert webhook.lets_in(SECRET) == []
    for rotation in (shop, clinic, new):
        assert webhook.lets_in(rotation.secret) == rotation.bots


def test_a_leaked_secret_is_refused_within_minutes(webhook: Webhook) -> None:
    first = webhook.rotate("shop")
    leaked = webhook.rotate("shop", leaked=True)

    assert leaked.previous_until is None
    assert webhook.lets_in(first.secret) == []
    assert webhook.lets_in(leaked.secret) == ["shop"]
    # The one that all have shared is as bad for this bot, and good for the others.
    assert sorted(webhook.lets_in(SECRET)) == sorted(BOTS.keys() - {"shop"})
    assert sorted(leaked.others_with_the_old_one) == sorted(BOTS.keys() - {"shop"})


def test_only_bots_with_the_leaked_secret_are_named(webhook: Webhook, clock: MachineClock) -> None:
    webhook.rotate("shop")
    clock.advance(24 * 3600)

    assert webhook.rotate("shop", leaked=True).others_with_the_old_one == []
    # The one before of a bot counts, too.
    webhook.rotate("new")
    assert webhook.rotate("clinic", leaked=True).others_with_the_old_one == ["new"]


def test_until_when_the_one_before_counts(webhook: Webhook, clock: MachineClock) -> None:
    before = clock.now()

    until = webhook.rotate("shop").previous_until

    assert until is not None
    assert until.timestamp() - before == pytest.approx(24 * 3600, abs=60)


def test_a_previous_secret_that_counts_is_not_dropped_by_the_next_rotation(
    webhook: Webhook, clock: MachineClock
) -> None:
    webhook.rotate("clinic")
    value = webhook.value()

    with pytest.raises(
        CommandError, match=r"clinic-vip was rotated less than a day ago.* until 20"
    ):
        webhook.rotate("clinic-vip")
    assert webhook.value() == value

    clock.advance(24 * 3600)
    webhook.rotate("clinic-vip")


def test_a_plain_secret_that_was_just_rotated_keeps_both(
    webhook: Webhook, clock: MachineClock
) -> None:
    webhook.put("second")

    with pytest.raises(CommandError, match="rotated less than a day ago"):
        webhook.rotate("shop")
    assert webhook.lets_in(SECRET) == ["*"]
    webhook.rotate("shop", leaked=True)

    others = sorted(BOTS.keys() - {"shop"})
    assert sorted(webhook.lets_in("second")) == sorted(webhook.lets_in(SECRET)) == others
    clock.advance(24 * 3600)
    assert webhook.lets_in(SECRET) == []
    assert sorted(webhook.lets_in("second")) == others


def test_a_bot_without_an_entry_gets_one(webhook: Webhook) -> None:
    webhook.put('{"shop": {"current": "s"}}')

    rotation = webhook.rotate("clinic")

    assert rotation.previous_until is None
    assert webhook.lets_in(rotation.secret) == CLINIC
    assert webhook.lets_in("s") == ["shop"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", ""),
        ('{"shop": "s3cret"}', " at shop"),
        ('{"shop": {"current": 55555}}', " at shop.current"),
        ('{"shop": {"current": "s3cret", "rotated_at": "soon"}}', " at shop.rotated_at"),
    ],
)
def test_what_cannot_be_read_is_not_written_over(webhook: Webhook, text: str, where: str) -> None:
    webhook.put(text)

    with pytest.raises(CommandError) as caught:
        webhook.rotate("clinic")

    assert str(caught.value) == f"the webhook's secret cannot be read{where}: fix it first"
    assert webhook.value() == text


def test_a_secret_is_for_a_bot_that_exists(webhook: Webhook) -> None:
    with pytest.raises(CommandError, match="no entry 'clinc'; it has clinic, clinic-vip"):
        webhook.rotate("clinc")

    assert webhook.value() == SECRET


def test_a_new_secret_is_long_and_not_shown_by_accident(webhook: Webhook) -> None:
    rotation = webhook.rotate("shop")

    assert re.fullmatch("[0-9a-f]{64}", rotation.secret)
    assert rotation.secret not in repr(rotation)
