"""The request schema accepts and refuses what `parse` does, but for the differences named here.

Twenty thousand requests, each a sample with a few mutations, from a fixed seed.
"""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from notifier.contract import phone
from notifier.contract.parse import _unwrapped, parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.failures import FieldError, Reason
from tests.unit.contract.test_documents import (
    README,
    REQUEST_VALIDATOR,
    SAMPLES,
    SCHEMA_CASES,
    USABLE,
    schema,
)

type Json = dict[str, Any]
type Place = tuple[Any, Any]  # a container, and the key or the index of an entry

MUTATIONS = 20_000
SEED = 981
# A share for each process of pytest-xdist.
SHARES = 4

# Most producers' validators take `format` for a note, as JSON Schema says.
WITHOUT_FORMATS = Draft202012Validator(schema("request.schema.json"))
BASES: list[Json] = [_unwrapped(SAMPLES[name]) for name in USABLE] + SCHEMA_CASES


# --- The differences ------------------------------------------------------------------------------


def whole_number_with_a_point(content: Json, error: FieldError) -> bool:
    return error.problem.startswith("must be a whole number") and any(
        isinstance(value, float) and value.is_integer() for _, value in values(content)
    )


def buttons_at_one_index(_content: Json, error: FieldError) -> bool:
    return error.problem.startswith("has two buttons at index")


IMPOSSIBLE_NUMBERS = {
    *phone._IMPOSSIBLE.values(),
    *phone._UNREADABLE.values(),
    "has a 0 too many after the country code",
}


def impossible_number(_content: Json, error: FieldError) -> bool:
    return error.field == "to" and error.problem in IMPOSSIBLE_NUMBERS


def unreadable_host(_content: Json, error: FieldError) -> bool:
    return error.problem == "is not a link: its host or port cannot be read"


def no_such_day(content: Json, error: FieldError) -> bool:
    day = content["valid_until"][:10]
    return error.field == "valid_until" and (
        day[4:] == "-02-29" or day in ("0001-01-01", "9999-12-31")
    )


# What a producer reads in events/README.md, and how the difference is recognised.
INVALID: dict[str, Callable[[Json, FieldError], bool]] = {
    "a whole number written `1.0`": whole_number_with_a_point,
    "two buttons at one index": buttons_at_one_index,
    "a number whose country does not exist or does not have that length": impossible_number,
    "a link whose host cannot be read": unreadable_host,
    "a 29 February in a year without one": no_such_day,
}
MALFORMED: dict[str, Callable[[str], bool]] = {
    "half a surrogate pair": lambda detail: "surrogate" in detail or "hex escape" in detail,
    "over 190 levels deep": lambda detail: "recursion limit exceeded" in detail,
    "a number too large": lambda detail: "number out of range" in detail or "too large" in detail,
    "the size": lambda detail: "is larger than" in detail,
}


def differences(content: Json, refused: InvalidRequest) -> list[str | None]:
    """Return the names of the reasons for which `parse` alone refuses a request, or None."""
    if refused.reason is Reason.MALFORMED:
        found = [name for name, is_it in MALFORMED.items() if is_it(refused.detail)]
        return [found[0] if found else None]
    return [
        next((name for name, is_it in INVALID.items() if is_it(content, error)), None)
        for error in refused.fields
    ]


# --- The mutations --------------------------------------------------------------------------------


def values(value: Any) -> Iterator[tuple[Place, Any]]:
    """Every value inside a value, with its place."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        yield (value, key), entry
        if isinstance(entry, dict | list):
            yield from values(entry)


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else []


CHARACTERS = [
    *map(chr, range(0x21)),
    *"\x7f\x85\xa0\u1680\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff",
    *"aZ059_-.:~/@?#[]\\%+()\u2011\u00e9\u0660\u2105\uff1a\U0001f600",
    *(" " * 4, " " * 5, "\ud800", "\udc00", "\ud83d", "\ude00\ud83d", "a\udfff"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 9, 10, -1, 1.0, 9.0, 0.5, -90, 180.5, 10**30, 1e300, float("inf")),
    *("", " ", "a", "A", "1", "\n", "a\n", "x" * 15, "x" * 16, "x" * 61, "x" * 257, "x" * 70_000),
    *([], [""], ["a"], [None], {}, {"a": "b"}, {"type": "text"}, {"type": "x", "a": 1}),
    [{"type": "x"}, {"type": 1}],
]
INDEXES = [None, None, 0, 1, 2, 9, 1.0, 10, True]
EXTRAS = ["type", "text", "link", "index", "body", "buttons", "components", "Id", "a\n", "", "ç"]
# One value from each of these makes a link.
LINK = [
    ["http://", "https://", "HTTPS://", "http:/", "ftp://", "//", ""],
    ["", "", "", "user@", "user:password@", "a@b@", "youtube.com@"],
    [
        *("example.com", "example.com.", "", ".", "..", "a", "-", "é.br", "127.0.0.1"),
        *("[::1]", "[1.2.3.4]", "[::1", "::1]", "[]", "[v1.a]", "[x]", "a[::1]", "a b", "a\x1cb"),
        *("youtube.com", "www.YouTube.com", "youtu.be.", "YOUTUBE-NOCOOKIE.COM", "notyoutube.com"),
        *("youtube.com.br", "m.youtu.be", "%41", "a\\b", "exa\u2105mple", "\u3000", "a%zone"),
    ],
    [
        "",
        "",
        "",
        ":",
        ":80",
        ":65535",
        ":65536",
        ":000080",
        ":99999",
        ":x",
        ":-1",
        ":8:0",
        ":\u0661",
    ],
    ["", "/", "/a.jpg", "?a=1", "#a", "/a b", "/a\u2003", "/youtube.com", "/@youtube.com", "\n"],
]
DATE = [
    ["2031", "2028", "2100", "0000", "0001", "9999", "203"],
    ["-02", "-01", "-04", "-12", "-00", "-13", ""],
    ["-29", "-28", "-01", "-30", "-31", "-00", "-32"],
    ["T", "t", " ", ""],
    ["00:00", "18:00", "23:59", "24:00", "18:60", "7:00"],
    [":00", ":59", ":60", "", ":0\u0660"],
    ["", "", ".5", ".123456789", ".", ",5"],
    ["Z", "z", "+00:00", "-03:00", "+23:59", "-24:00", "+00:60", "-0300", "", "+14:00"],
]
NUMBER = [
    ["+", "+", "+", " +", "(+", "", "++"],
    ["55", "1", "49", "999", "0", "55 (0)", "550"],
    ["", " ", "-", "\u2011", ".", "\t"],
    ["31", "212", "30", "(11)", ""],
    ["99999-8888", "5550100", "999998888", "1", "1234567890123", "\u0669999988888", "98888\n"],
]


class Mutator:
    """Draws mutated requests from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pool = [entry for base in BASES for _, entry in values(base)]

    def draw(self) -> Json:
        content = copy.deepcopy(self.random.choice(BASES))
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            place, entry = self.random.choice(list(values(content)))
            self._mutate(content, place, entry)
        return content

    def _mutate(self, content: Json, place: Place, entry: Any) -> None:
        container, key = place
        template = content.get("template")
        match self.random.randrange(12):
            case 0:
                container[key] = copy.deepcopy(self.random.choice(VALUES))
            case 1:
                container[key] = copy.deepcopy(self.random.choice(self.pool))
            case 2:
                del container[key]
            case 3 if isinstance(template, dict):
                name = self.random.choice(["header", "body", "buttons", "components"])
                others = [base["template"].get(name) for base in BASES]
                template[name] = copy.deepcopy(self.random.choice([None, [], *others]))
            case 4:
                content["valid_until"] = self._made_of(DATE)
            case 5:
                content["to"] = self._made_of(NUMBER)
            case 6 if isinstance(template, dict):
                template["header"] = {"type": "image", "link": self._made_of(LINK)}
            case 7 if isinstance(template, dict):
                template["buttons"] = [
                    {"type": "url", "text": "a", "index": self.random.choice(INDEXES)}
                    for _ in range(self.random.randrange(1, 4))
                ]
            case 8 if isinstance(template, dict):
                for name in ("header", "body", "buttons"):
                    template.pop(name, None)
                inner = self.random.choice([*VALUES, *map(nested, range(150, 250, 10))])
                template["components"] = [{"type": "a", "b": inner}]
            case _:
                container[key] = self._changed(entry)

    def _made_of(self, parts: list[list[str]]) -> str:
        """Return a text of one choice from each part, usually one of the first two."""
        return "".join(
            self.random.choice(part if self.random.random() < 0.4 else part[:2]) for part in parts
        )

    def _changed(self, entry: Any) -> Any:
        match entry:
            case str():
                at = self.random.randrange(len(entry) + 1)
                extra = self.random.choice(CHARACTERS)
                return self.random.choice(
                    [
                        entry[:at] + extra + entry[at:],
                        entry[:at] + extra + entry[at + 1 :],
                        entry[:at],
                        entry + extra,
                        extra,
                        extra * 3,
                        entry.swapcase(),
                        (entry * 2000)[
                            : self.random.choice((60, 64, 65, 128, 129, 256, 2000, 2001))
                        ],
                    ]
                )
            case list():
                extra = self.random.choice([*entry, self.random.choice(VALUES)])
                return copy.deepcopy([*entry, extra] * self.random.choice((1, 1, 1, 6)))
            case dict():
                name = self.random.choice([*EXTRAS, *map(str.swapcase, entry)])
                name = self.random.choice([name, "x" * self.random.choice((64, 65))])
                extra = self.random.choice([*VALUES, *entry.values()])
                return copy.deepcopy(entry | {name: extra})
            case bool() | None:
                return self.random.choice(VALUES)
            case _:
                return self.random.choice([entry + 1, -entry, float(entry), entry / 4, entry * 10])


# --- The tests ------------------------------------------------------------------------------------


def compared(content: Json) -> list[str | None]:
    """Return the differences between the schema and `parse`, or how both of them decided."""
    try:
        parse(json.dumps(content).replace("Infinity", "1e400"))
    except InvalidRequest as refused:
        kept = WITHOUT_FORMATS.is_valid(content)
        return differences(content, refused) if kept else ["both refuse"]
    kept = REQUEST_VALIDATOR.is_valid(content)
    return ["both accept"] if kept else ["the schema alone refuses"]


@pytest.mark.parametrize("share", range(SHARES))
def test_schema_and_parse_agree_on_mutated_requests(share: int) -> None:
    mutator = Mutator(SEED + share)
    seen: Counter[str | None] = Counter()
    for _ in range(MUTATIONS // SHARES):
        content = mutator.draw()
        result = compared(content)
        assert None not in result, content
        assert result != ["the schema alone refuses"], content
        seen.update(result)
    # Each difference still exists, and the mutations neither spare the rules nor only break them.
    assert seen.keys() == {*INVALID, *MALFORMED, "both accept", "both refuse"}
    assert min(seen["both accept"], seen["both refuse"]) > MUTATIONS // SHARES // 5


def test_contract_readme_names_every_difference() -> None:
    section = README.partition("## Check before publishing")[2].partition("\n## ")[0]
    words = " ".join(section.split())
    assert [name for name in (*INVALID, *MALFORMED) if name not in words] == []
