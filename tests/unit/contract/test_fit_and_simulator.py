"""The check refuses what the simulator's WhatsApp does, but for the differences named here.

Ten thousand messages, each a sample with a few mutations, from a fixed seed. The simulator judges
the content that BLiP would get.
"""

import copy
import random
import re
from collections import Counter
from typing import Any

import pytest

from notifier.blip.envelopes import components
from notifier.contract.fit import misfits
from notifier.contract.parse import parse
from notifier.contract.template import Template
from notifier.domain.failures import FieldError
from tests.local.blip.misfits import MisfitError, check
from tests.local.blip.templates import read
from tests.support.templates import translations
from tests.unit.contract.test_documents import SAMPLES, USABLE

type Json = dict[str, Any]

MUTATIONS = 10_000
SEED = 981
# A share for each process of pytest-xdist.
SHARES = 4

# What no sentence about a misfit may hold.
PRIVATE = "Segredo"

TRANSLATIONS = translations()
TEMPLATES = {(template.name, template.language): template for template in read()}

# What the simulator refuses and the check does not, by the simulator's words: WhatsApp's answer is
# not documented, or is about a value and not about what the template takes.
TOLERATED: dict[str, str] = {
    "a component that nobody knows, or that comes twice": "component .* is unknown here",
    "a button that comes twice": "button . comes twice",
    "a value by name where names mean nothing": "parameter has no member parameter_name",
    "a value of a type that belongs elsewhere": "(body|button .): a parameter of type",
    "a header of such a type": "header: expected .*, received '(payload|coupon_code)'",
    "an amount in a header": "header: expected TEXT, received '(currency|date_time)'",
    "an answer's component without a payload": "button . needs one|button .: expected quick_reply",
    "a component without a value for a button that takes none": "of the template takes no param",
    "cards in another order": "the cards are not in order",
}
# By WhatsApp's code: about how many and which values a template takes.
SHAPE_CODES = {131008, 132000, 132012}

VALUES: list[Json] = [
    {"type": "text", "text": PRIVATE},
    {"type": "text", "text": PRIVATE, "parameter_name": "customer"},
    {"type": "text", "text": PRIVATE, "parameter_name": "due_date"},
    {"type": "text", "text": PRIVATE, "parameter_name": PRIVATE},
    {"type": "text", "text": PRIVATE * 144},
    {"type": "currency", "currency": {"fallback_value": PRIVATE, "code": "BRL", "amount_1000": 1}},
    {"type": "date_time", "date_time": {"fallback_value": PRIVATE}},
    {"type": "image", "image": {"link": f"https://example.com/{PRIVATE}.png"}},
    {"type": "video", "video": {"link": f"https://example.com/{PRIVATE}.mp4"}},
    {"type": "document", "document": {"link": f"https://example.com/{PRIVATE}.pdf"}},
    {"type": "payload", "payload": PRIVATE},
    {"type": "coupon_code", "coupon_code": PRIVATE},
]
SUB_TYPES = ["quick_reply", "url", "copy_code", "flow"]
INDEXES: list[int | str] = [0, 1, 2, 3, "0", "1", "2"]
BASES = [parse(SAMPLES[name]).request.template for name in USABLE]


class Mutator:
    """Draws mutated lists of components from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def draw(self) -> tuple[str, list[Json]]:
        """Return a template's name and the components of a message of it."""
        base = self.random.choice(BASES)
        changed = copy.deepcopy(components(base))
        for _ in range(self.random.choice((0, 1, 1, 1, 2))):
            self._mutate(changed)
        return base.name, changed

    def _mutate(self, parts: list[Json]) -> None:
        if not parts or self.random.random() < 0.15:
            parts.insert(self.random.randrange(len(parts) + 1), self._component())
            return
        position = self.random.randrange(len(parts))
        part = parts[position]
        if self.random.random() < 0.15:
            del parts[position]
        elif part["type"] == "carousel":
            self._mutate_cards(part["cards"])
        elif part["type"] == "button" and self.random.random() < 0.5:
            part["index"] = self.random.choice(INDEXES)
            part["sub_type"] = self.random.choice([part["sub_type"], *SUB_TYPES])
        else:
            self._mutate_values(part)

    def _mutate_values(self, part: Json) -> None:
        values = part.setdefault("parameters", [])
        place = self.random.randrange(len(values) + 1)
        match self.random.randrange(4) if values else 1:
            case 0:
                del values[place - 1]
            case 1:
                values.insert(place, copy.deepcopy(self.random.choice(VALUES)))
            case 2:
                values[place - 1] = copy.deepcopy(self.random.choice(VALUES))
            case _:
                values.append(copy.deepcopy(values[place - 1]))

    def _mutate_cards(self, cards: list[Json]) -> None:
        place = self.random.randrange(len(cards))
        match self.random.randrange(6):
            case 0:
                del cards[place]
            case 1:
                cards.append(copy.deepcopy(cards[place]))
            case 2:
                cards[place]["card_index"] = self.random.choice(INDEXES)
            case _:
                self._mutate(cards[place]["components"])
        if not cards:
            cards.append({"card_index": 0, "components": []})

    def _component(self) -> Json:
        kind = self.random.choice(["header", "body", "button", "carousel", "footer"])
        part: Json = {"type": kind}
        if kind == "carousel":
            return part | {"cards": [{"card_index": 0, "components": []}]}
        if kind == "button":
            part |= {
                "sub_type": self.random.choice(SUB_TYPES),
                "index": self.random.choice(INDEXES),
            }
        some = self.random.choices(VALUES, k=self.random.choice((0, 1, 1, 2)))
        return part | {"parameters": copy.deepcopy(some)}


def said(name: str, parts: list[Json]) -> MisfitError | None:
    """Return what the simulator's WhatsApp says of a message; None if it delivers it."""
    content = {
        "type": "template",
        "template": {
            "name": name,
            "language": {"code": "pt_BR", "policy": "deterministic"},
            "components": parts,
        },
    }
    try:
        check(content, lambda *wanted: TEMPLATES.get(wanted))
    except MisfitError as misfit:
        return misfit
    return None


def compared(name: str, parts: list[Json], found: tuple[FieldError, ...]) -> str | None:
    """Return how both decide, or the name of their difference; None if it has none."""
    misfit = said(name, parts)
    if misfit is None:
        # The simulator does not count a text's fixed part.
        length = any("characters with its values" in error.problem for error in found)
        return "a fixed text" if length else "both accept" if not found else None
    if found:
        return "both refuse"
    if misfit.code not in SHAPE_CODES:
        return "the simulator alone refuses a value"
    return next((it for it, words in TOLERATED.items() if re.search(words, str(misfit))), None)


@pytest.mark.parametrize("share", range(SHARES))
def test_check_and_simulator_agree_on_mutated_messages(share: int) -> None:
    mutator = Mutator(SEED + share)
    seen: Counter[str | None] = Counter()
    for _ in range(MUTATIONS // SHARES):
        name, parts = mutator.draw()
        if not parts:
            continue
        template = Template(name=name, language="pt_BR", components=parts)
        found = misfits(template, TRANSLATIONS[name, "pt_BR"])
        result = compared(name, parts, found)
        assert result is not None, (name, parts, found, str(said(name, parts)))
        assert not any(PRIVATE in f"{error.field} {error.problem}" for error in found)
        seen.update([result])
    assert min(seen["both accept"], seen["both refuse"]) > MUTATIONS // SHARES // 5


def test_every_difference_still_exists() -> None:
    mutator = Mutator(SEED)
    left = {*TOLERATED, "a fixed text"}
    for _ in range(MUTATIONS):
        name, parts = mutator.draw()
        if parts:
            template = Template(name=name, language="pt_BR", components=parts)
            left.discard(compared(name, parts, misfits(template, TRANSLATIONS[name, "pt_BR"])))
    assert left == set()
