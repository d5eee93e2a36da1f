"""The bots' secret: what people paste into it, and what a broken entry says."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.domain.bots import Bot, BotsSecretError, InvalidBot, parse_bots
from tests.support.builders import KEY

PLACEHOLDER = json.dumps(
    {
        "default": {
            "base_url": "https://http.msging.net",
            "key": "REPLACE_ME",
            "namespace": "REPLACE_ME",
            "messages_per_second": 50,
            "commands_per_second": 200,
        }
    }
)


def the_bot(**entry: Any) -> Bot:
    bot = parse_bots(json.dumps({"default": {"key": KEY} | entry}))["default"]
    assert isinstance(bot, Bot), bot
    return bot


def the_problem(**entry: Any) -> str:
    bot = parse_bots(json.dumps({"default": {"key": KEY} | entry}))["default"]
    assert isinstance(bot, InvalidBot), bot
    return bot.problem


def test_documented_bot_is_read() -> None:
    bot = the_bot(
        base_url="https://acme.http.msging.net",
        namespace="acme_namespace",
        messages_per_second=3,
        commands_per_second=48,
    )

    assert bot.name == "default"
    assert bot.base_url == "https://acme.http.msging.net"
    assert bot.key == KEY
    assert bot.namespace == "acme_namespace"
    assert bot.messages_per_second == 3
    assert bot.commands_per_second == 48


def test_key_alone_is_a_valid_bot() -> None:
    bot = the_bot()

    assert bot.base_url == "https://http.msging.net"
    assert bot.namespace is None
    assert (bot.messages_per_second, bot.commands_per_second) == (50, 200)


@pytest.mark.parametrize(
    "pasted",
    [
        KEY,
        KEY.removeprefix("Key "),
        f"  {KEY}\n",
        KEY.lower()[:4] + KEY[4:],
        f"Key {KEY}",
        f"KEY  {KEY}",
    ],
)
def test_pasted_key_gets_exactly_one_prefix(pasted: str) -> None:
    assert the_bot(key=pasted).key == KEY


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_any_identifier_and_secret_make_a_key(identifier: str, secret: str) -> None:
    if ":" in identifier or any("\ud800" <= letter <= "\udfff" for letter in identifier + secret):
        return
    key = base64.b64encode(f"{identifier}:{secret}".encode()).decode()

    assert the_bot(key=key).key == f"Key {key}"
    assert the_bot(key=f"Key {key}").key == f"Key {key}"


def test_placeholder_of_the_deploy_is_refused_by_name() -> None:
    bot = parse_bots(PLACEHOLDER)["default"]

    assert isinstance(bot, InvalidBot)
    assert bot.problem == (
        "bot default: its entry in the bots' secret is wrong: "
        "key: is still the placeholder: put the bot's key from BLiP's portal here; "
        "namespace: is still the placeholder: put the templates' namespace here, or drop it"
    )


@pytest.mark.parametrize("placeholder", ["REPLACE_ME", "Key REPLACE_ME", " key REPLACE_ME "])
def test_placeholder_is_recognised_in_every_form(placeholder: str) -> None:
    assert "is still the placeholder" in the_problem(key=placeholder)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("Key not one word", "is empty or holds a space: copy it whole from BLiP's portal"),
        ("Key line\nbreak", "is empty or holds a space: copy it whole from BLiP's portal"),
        ("", "is empty or holds a space"),
        ("Key ", "is empty or holds a space"),
        ("Key çã", "is empty or holds a space"),
        (None, "key"),
        (7, "key"),
    ],
)
def test_invalid_key_is_refused_with_its_problem(key: Any, problem: str) -> None:
    assert problem in the_problem(key=key)


@pytest.mark.parametrize(
    "entry",
    [
        {"base_url": "http.msging.net"},
        {"base_url": "ftp://http.msging.net"},
        {"base_url": "https://"},
        {"base_url": "https://http.msging.net/messages"},
        {"base_url": "https://http.msging.net?x=1"},
        {"base_url": "https://http.msging.net#x"},
        {"base_url": "https://user:password@http.msging.net"},
        {"base_url": "https://http..msging.net"},
        {"base_url": "https://http.msging.net:port"},
        {"base_url": "https://http.msging.net:123456"},
        {"base_url": "https://[::1"},
        {"base_url": "https://http.msging.net\n"},
        {"base_url": " https://http.msging.net"},
        {"base_url": "http://http.msging.net"},  # would send the key in the clear
        {"base_url": "http://10.0.0.1:8080"},
        {"base_url": "http://127.0.0.1.example.com"},
        {"base_url": "http://localhost.example.com"},
        {"base_url": "http://1270.0.0.1"},
        {"base_url": f"https://{'a' * 64}.msging.net"},
        {"messages_per_second": 0},
        {"messages_per_second": -1},
        {"messages_per_second": "fast"},
        {"commands_per_second": 0},
        {"commands_per_second": None},
        {"namespace": 7},
        {"name_space": "a typo"},
    ],
    ids=str,
)
def test_invalid_entry_names_its_member(entry: dict[str, Any]) -> None:
    (member,) = entry

    assert f"{member}:" in the_problem(**entry)


@pytest.mark.parametrize(
    "url",
    [
        "https://http.msging.net",
        "https://http.msging.net/",
        "https://4c1f2a.http.msging.net",
        "https://a-contract_1.http.msging.net",
        "http://127.0.0.1:8080",
        "http://localhost:1/",
        "http://host.docker.internal:4567",
    ],
)
def test_base_urls_in_use_are_accepted(url: str) -> None:
    assert the_bot(base_url=url).base_url == url


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("member", ["messages_per_second", "commands_per_second"])
def test_plan_must_be_a_finite_number(member: str, number: str) -> None:
    assert member in the_problem(**{member: float(number)})


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ção", "x" * 65, "a:b", "default\n"])
def test_bot_name_that_no_request_can_use_is_refused(name: str) -> None:
    (bot,) = parse_bots(json.dumps({name: {"key": KEY}})).values()

    assert isinstance(bot, InvalidBot)
    assert "name:" in bot.problem


@pytest.mark.parametrize("entry", [None, "Key abc", 7, [], True])
def test_entry_that_is_not_an_object_is_refused(entry: Any) -> None:
    bot = parse_bots(json.dumps({"default": entry}))["default"]

    assert bot == InvalidBot(
        "default", "bot default: its entry in the bots' secret is not a JSON object"
    )


def test_invalid_bot_does_not_affect_the_others() -> None:
    bots = parse_bots(json.dumps({"good": {"key": KEY}, "bad": {"key": "REPLACE_ME"}, "ugly": 7}))

    assert isinstance(bots["good"], Bot)
    assert isinstance(bots["bad"], InvalidBot)
    assert isinstance(bots["ugly"], InvalidBot)


@pytest.mark.parametrize("secret", ["", "REPLACE_ME", "[]", "null", "7", '"text"', "{", '{"a":}'])
def test_secret_that_is_not_a_json_object_is_refused(secret: str) -> None:
    with pytest.raises(BotsSecretError, match="is not a JSON object") as error:
        parse_bots(secret)

    assert secret not in str(error.value) or len(secret) < 5


def test_problems_never_show_a_part_of_the_secret() -> None:
    good = KEY.removeprefix("Key ")
    broken = good[:-4]
    bots = parse_bots(
        json.dumps(
            {
                "good": {"key": good},
                "bad": {"key": broken},
                "typo": {"kay": good},
                "worse": {"key": good, "messages_per_second": good},
            }
        )
    )

    for shown in (repr(bots), str(bots), *map(str, bots.values()), *map(repr, bots.values())):
        assert broken not in shown
        assert good not in shown
