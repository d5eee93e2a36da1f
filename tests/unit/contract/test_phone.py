import re
import subprocess
import sys
from pathlib import Path

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.contract.phone import mask, normalise

PACKAGE = Path(__file__).parents[3] / "layers" / "notifier"


@pytest.mark.parametrize(
    ("written", "e164"),
    [
        pytest.param("+5531999998888", "+5531999998888", id="as it is"),
        pytest.param("+55 (31) 99999-8888", "+5531999998888", id="spaces, dash, parentheses"),
        pytest.param(" +55 31 99999-8888 ", "+5531999998888", id="spaces around"),
        pytest.param("(+55) 31 99999 8888", "+5531999998888", id="parentheses around the country"),
        pytest.param("+55\u00a031\u202f99999\u20118888", "+5531999998888", id="pasted"),
        pytest.param("+55 (0)31 99999-8888", "+5531999998888", id="one trunk 0"),
        pytest.param("+553132221111", "+553132221111", id="landline"),
        pytest.param("+1 650 253 0000", "+16502530000", id="United States"),
        pytest.param("+39 06 698 12345", "+390669812345", id="Italy keeps its 0"),
        pytest.param("+351 912 345 678", "+351912345678", id="Portugal"),
    ],
)
def test_phone_numbers_are_normalised_to_e164(written: str, e164: str) -> None:
    assert normalise(written) == e164


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("", "must start with +"),
        ("5531999998888", "must start with +"),
        ("005531999998888", "must start with +"),
        ("\uff0b5531999998888", "must start with +"),
        ("+", "must hold only digits"),
        ("+55 31 99999.8888", "must hold only digits"),
        ("+55/31/999998888", "must hold only digits"),
        ("+5531999998888 ext 5", "must hold only digits"),
        ("+553199999TAKE", "must hold only digits"),
        ("+5531999998888\n", "must hold only digits"),
        ("++5531999998888", "must hold only digits"),
        ("+\u0665\u0665\u0663\u0661999998888", "must hold only digits"),
        ("+\uff15\uff1531999998888", "must hold only digits"),
        ("+5531\ud800", "must hold only digits"),
        ("+1", "is too short"),
        ("+5531", "is too short"),
        ("+5531999998888777", "is too long"),
        ("+55" + "9" * 300, "is too long"),
        ("+999123456789", "starts with a country code that does not exist"),
        ("+2100000000", "starts with a country code that does not exist"),
        ("+553222", "is too short"),
        ("+1 253 0000", "lacks its area code"),
        ("+61 22222222222", "has a length that no number of its country has"),
        ("+49 00 6662", "has a 0 too many after the country code"),
    ],
)
def test_impossible_numbers_are_refused_in_one_line(written: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("+", r"\+")) as refused:
        normalise(written)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "written",
    [
        "BR.13491208655302741918",
        "1e0f8d3c-2b6a-4f5e-9c7d-0a1b2c3d4e5f",
        "1E0F8D3C-2B6A-4F5E-9C7D-0A1B2C3D4E5F@wa.gw.msging.net",
        " BR.13491208655302741918 ",
    ],
)
def test_user_id_of_whatsapp_is_refused_by_its_name(written: str) -> None:
    with pytest.raises(ValueError, match=r"^is a business-scoped user id \(BSUID\)") as refused:
        normalise(written)
    assert "with + and the country code" in str(refused.value)
    assert written.strip() not in str(refused.value)


@pytest.mark.parametrize("written", ["5531999998888@wa.gw.msging.net", "+5531999998888@c.us"])
def test_identity_of_whatsapp_is_refused_by_its_name(written: str) -> None:
    with pytest.raises(ValueError, match=r"^is a WhatsApp identity") as refused:
        normalise(written)
    assert "5531" not in str(refused.value)


NUMBERS = st.builds(
    "+{}{}{}".format,
    st.sampled_from(sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE)),
    st.sampled_from(["", "0", "00"]),
    st.text("0123456789", min_size=4, max_size=12),
)


def normalised_or_none(text: str) -> str | None:
    try:
        return normalise(text)
    except ValueError:
        return None


@given(NUMBERS | st.text("+0123456789 -()", max_size=20) | st.text(max_size=20))
def test_normalising_a_number_twice_changes_nothing(text: str) -> None:
    once = normalised_or_none(text)
    if once is not None:
        assert normalise(once) == once
        assert once[0] == "+"
        assert once[1:].isascii()
        assert once[1:].isdigit()


@given(NUMBERS)
def test_refusal_never_holds_the_number(number: str) -> None:
    problem = ""
    try:
        normalise(number)
    except ValueError as error:
        problem = str(error)
    assert not re.search("[0-9]", problem.replace("a 0 too many", ""))


@pytest.mark.parametrize(
    ("number", "masked"), [("+5531999998888", "…8888"), ("+55", "…55"), ("", "…")]
)
def test_mask_shows_the_last_four_digits(number: str, masked: str) -> None:
    assert mask(number) == masked


@given(st.text())
def test_mask_never_shows_more_than_four_characters(text: str) -> None:
    masked = mask(text)
    assert masked.startswith("…")
    assert len(masked) <= 5
    assert all(character.isdigit() for character in masked[1:])


def test_importing_phone_loads_no_geography() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, notifier.contract.phone; print(*sys.modules)"],
        env={"PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = ("geocoder", "geodata", "carrier", "carrierdata", "timezone", "tzdata")
    assert "phonenumbers" in loaded
    assert not [
        name for name in loaded if name.startswith("phonenumbers.") and name.endswith(heavy)
    ]
