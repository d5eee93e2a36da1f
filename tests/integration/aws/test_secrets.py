"""The bots' secret and its cache."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from notifier.domain.bots import Bot, Bots, BotsSecretError, InvalidBot
from tests.integration.aws.backends import MINUTE, Backend, RealOnes
from tests.integration.conftest import Aws
from tests.support.builders import KEY, OTHER_KEY


def a_secret(**bots: str) -> str:
    return json.dumps({name: {"key": key} for name, key in bots.items()})


def test_secret_is_cached_for_five_minutes(backend: Backend) -> None:
    backend.put_secret(a_secret(default=KEY))
    secrets = backend.secrets()
    assert secrets.bots()["default"].key == KEY
    backend.put_secret(a_secret(default=OTHER_KEY))

    backend.clock.advance(5 * MINUTE)
    assert secrets.bots()["default"].key == KEY

    backend.clock.advance(1)
    assert secrets.bots()["default"].key == OTHER_KEY


def test_bot_with_a_refused_key_is_fetched_again(backend: Backend) -> None:
    backend.put_secret(a_secret(default=KEY))
    secrets = backend.secrets()
    stale = secrets.bots()["default"]
    backend.put_secret(a_secret(default=OTHER_KEY))

    backend.clock.advance(11)
    fresh = secrets.fresh("default", stale)

    assert fresh.key == OTHER_KEY
    # A call a moment later gets the same without another fetch.
    backend.put_secret(a_secret(default=KEY))
    backend.clock.advance(60)
    assert secrets.fresh("default", stale) == fresh


def test_failing_bot_is_fetched_at_most_every_ten_seconds(
    backend: Backend,
) -> None:
    backend.put_secret(a_secret(default=KEY))
    secrets = backend.secrets()
    stale = secrets.bots()["default"]
    backend.put_secret(a_secret(default=OTHER_KEY, late=KEY))

    backend.clock.advance(10)
    assert secrets.fresh("default", stale) == stale
    assert secrets.fresh("late", None) is None

    backend.clock.advance(0.1)
    assert secrets.fresh("late", None).key == KEY


def test_known_bots_stay_valid_while_secrets_manager_does_not_answer(
    real: RealOnes, aws: Aws, caplog: pytest.LogCaptureFixture
) -> None:
    aws.put_bots({"default": {"key": KEY}})
    bots = real.secrets()
    known = bots.bots()
    bot = known["default"]
    assert isinstance(bot, Bot)
    aws.secrets_manager.delete_secret(SecretId=aws.secret, ForceDeleteWithoutRecovery=True)

    real.clock.advance(301)
    assert bots.bots() == known
    assert bots.fresh("default", bot) == bot

    assert "secret not read: the known value stays valid" in caplog.messages
    with pytest.raises(ClientError):
        real.secrets().bots()


def test_invalid_entry_affects_one_bot_and_an_invalid_secret_all(backend: Backend) -> None:
    backend.put_secret(json.dumps({"default": {"key": KEY}, "bad": {"key": "REPLACE_ME"}}))
    secrets = backend.secrets()
    bots: Bots = secrets.bots()
    assert isinstance(bots["bad"], InvalidBot)
    assert isinstance(bots["default"], Bot)
    backend.put_secret("not JSON")

    backend.clock.advance(11)
    with pytest.raises(BotsSecretError):
        secrets.fresh("default", bots["default"])


def test_one_thread_fetches_the_secret_for_all(real: RealOnes, aws: Aws) -> None:
    real.put_secret(a_secret(default=KEY))
    secrets = real.secrets()
    stale = secrets.bots()["default"]
    assert isinstance(stale, Bot)
    real.put_secret(a_secret(default=OTHER_KEY))
    real.clock.advance(11)
    aws.calls.clear()
    start = threading.Barrier(8)

    def race(_: int) -> Bot | InvalidBot | None:
        start.wait()
        return secrets.fresh("default", stale)

    with ThreadPoolExecutor(8) as threads:
        fresh = list(threads.map(race, range(8)))

    assert {bot.key for bot in fresh if isinstance(bot, Bot)} == {OTHER_KEY}
    assert [name for name, _ in aws.calls] == ["GetSecretValue"]
