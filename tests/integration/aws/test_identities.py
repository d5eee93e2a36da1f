"""The identities: cache, lease, look-up, erasure."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from notifier.aws import memory
from notifier.aws.identities import forgotten_key
from notifier.aws.table import UnreadError
from notifier.domain.recipients import Identity, LookUpLease
from tests.integration.aws.backends import (
    DAY,
    LEASE,
    MINUTE,
    NEGATIVE_TTL,
    TTL,
    Backend,
    LostAnswers,
    RealOnes,
)
from tests.integration.conftest import Aws

RECIPIENT = ("default", "+5531999998888")
ADDRESS = "553199998888@wa.gw.msging.net"


def test_unknown_recipient_has_no_identity(backend: Backend) -> None:
    assert backend.identities().read([RECIPIENT], ["default"], []) == ({}, {}, {})
    assert backend.identities().get(RECIPIENT) is None


def learn(
    backend: Backend,
    identity: Identity | None = None,
    *,
    recipient: tuple[str, str] = RECIPIENT,
    uniform: Callable[[float, float], float] = max,
) -> None:
    identities = backend.identities(uniform=uniform)
    lease = identities.lease(recipient, LEASE)
    assert isinstance(lease, LookUpLease)
    identities.store(lease, identity or Identity(ADDRESS))


def known(identities: Any, recipient: tuple[str, str] = RECIPIENT) -> Identity | None:
    found = identities.read([recipient], [], [])[0].get(recipient)
    assert found is None or isinstance(found, Identity)
    return found


def test_stored_identity_is_known_in_every_sandbox(backend: Backend) -> None:
    learn(backend)

    for identities in (backend.identities(), backend.identities()):
        assert known(identities) == Identity(ADDRESS)
        assert identities.get(RECIPIENT) == Identity(ADDRESS)
        assert identities.lease(RECIPIENT, LEASE) == Identity(ADDRESS)


def test_identities_of_bots_are_separate(backend: Backend) -> None:
    learn(backend)

    assert known(backend.identities(), ("clinic", RECIPIENT[1])) is None


def test_many_identities_are_read_at_once(backend: Backend) -> None:
    recipients = [("default", f"+55319999{number:05}") for number in range(12)]
    for number, recipient in enumerate(recipients[:10]):
        learn(backend, Identity(f"{number}@wa.gw.msging.net"), recipient=recipient)
    identities = backend.identities()
    assert known(identities, recipients[3])  # one of them from memory

    found, _, _ = identities.read(recipients, ["default", "clinic"], [])

    assert found == {
        recipient: Identity(f"{number}@wa.gw.msging.net")
        for number, recipient in enumerate(recipients[:10])
    }


@pytest.mark.parametrize("uniform", [min, max])
@pytest.mark.parametrize(
    ("identity", "ttl"), [(Identity(ADDRESS), TTL), (Identity(None, 61), NEGATIVE_TTL)]
)
def test_identity_lives_at_least_nine_tenths_of_its_time_to_live(
    backend: Backend, identity: Identity, ttl: int, uniform: Callable[[float, float], float]
) -> None:
    lifetime = uniform(0.9 * ttl, ttl)
    learn(backend, identity, uniform=uniform)
    item = backend.item("identities", "/".join(RECIPIENT))
    assert item["good_until"] == round((backend.clock.now() + lifetime) * 1000)
    assert item["expires_at"] == pytest.approx(backend.clock.now() + lifetime, abs=1)

    backend.clock.advance(lifetime - 1)
    assert known(backend.identities()) == identity

    backend.clock.advance(1)
    # Whether DynamoDB has swept it or not.
    assert known(backend.identities()) is None
    assert backend.identities().get(RECIPIENT) is None
    assert isinstance(backend.identities().lease(RECIPIENT, LEASE), LookUpLease)


def test_refusal_is_known_with_its_code(backend: Backend) -> None:
    learn(backend, Identity(None, 61))

    assert known(backend.identities()) == Identity(None, 61)
    assert backend.identities().lease(RECIPIENT, LEASE) == Identity(None, 61)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Identity(None, 61), Identity(ADDRESS)),
        (Identity(ADDRESS), Identity(None, 67)),
        (Identity(ADDRESS), Identity("another@wa.gw.msging.net")),
    ],
)
def test_newer_identity_replaces_the_older(
    backend: Backend, first: Identity, second: Identity
) -> None:
    learn(backend, first)
    backend.clock.advance(TTL + 1)
    learn(backend, second)

    assert known(backend.identities()) == second


def test_one_sandbox_at_a_time_looks_a_recipient_up(backend: Backend) -> None:
    first, second = backend.identities(), backend.identities()

    assert isinstance(first.lease(RECIPIENT, LEASE), LookUpLease)
    assert second.lease(RECIPIENT, LEASE) is None
    assert first.lease(RECIPIENT, LEASE) is None
    assert known(second) is None

    backend.clock.advance(LEASE + 0.1)
    assert isinstance(second.lease(RECIPIENT, LEASE), LookUpLease)


def test_released_lease_is_free_at_once(backend: Backend) -> None:
    first, second = backend.identities(), backend.identities()
    first.release(first.lease(RECIPIENT, LEASE))

    assert isinstance(second.lease(RECIPIENT, LEASE), LookUpLease)


def test_expired_lease_releases_nothing_and_stores_nothing(
    backend: Backend,
) -> None:
    late, second = backend.identities(), backend.identities()
    lost = late.lease(RECIPIENT, LEASE)
    backend.clock.advance(LEASE + 1)
    second.lease(RECIPIENT, LEASE)
    before = backend.item("identities", "/".join(RECIPIENT))

    late.release(lost)
    late.store(lost, Identity(ADDRESS))

    assert backend.item("identities", "/".join(RECIPIENT)) == before
    assert backend.identities().lease(RECIPIENT, LEASE) is None


def test_one_of_many_simultaneous_callers_looks_up(backend: Backend) -> None:
    start = threading.Barrier(8)

    def race(_: int) -> LookUpLease | Identity | None:
        start.wait()
        return cast("LookUpLease | None", backend.identities().lease(RECIPIENT, LEASE))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(race, range(8)))

    assert Counter(type(one) for one in found) == {LookUpLease: 1, type(None): 7}


def test_memory_saves_reads_for_five_minutes(backend: Backend) -> None:
    learn(backend)
    identities = backend.identities()
    assert known(identities) == Identity(ADDRESS)
    backend.change("identities", "/".join(RECIPIENT), address="another@wa.gw.msging.net")

    backend.clock.advance(5 * MINUTE - 1)
    assert known(identities) == Identity(ADDRESS)

    backend.clock.advance(1)
    assert known(identities) == Identity("another@wa.gw.msging.net")


def test_memory_holds_what_this_sandbox_has_stored(backend: Backend) -> None:
    identities = backend.identities()
    identities.store(identities.lease(RECIPIENT, LEASE), Identity(ADDRESS))
    backend.change("identities", "/".join(RECIPIENT), address="another@wa.gw.msging.net")

    assert known(identities) == Identity(ADDRESS)


def test_fresh_read_ignores_the_memory(backend: Backend) -> None:
    learn(backend)
    identities = backend.identities()
    known(identities)
    backend.change("identities", "/".join(RECIPIENT), address="another@wa.gw.msging.net")

    assert identities.get(RECIPIENT) == Identity("another@wa.gw.msging.net")
    assert known(identities) == Identity("another@wa.gw.msging.net")


def test_memory_expires_with_the_entry(backend: Backend) -> None:
    learn(backend)
    backend.clock.advance(TTL - 10)
    identities = backend.identities()
    assert known(identities) == Identity(ADDRESS)

    backend.clock.advance(10)
    assert known(identities) is None


def test_memory_is_bounded_and_drops_the_oldest(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMORY_ENTRIES", 3)
    recipients = [("default", f"+55319999{number:05}") for number in range(4)]
    for recipient in recipients:
        learn(backend, recipient=recipient)
    identities = backend.identities()
    for recipient in recipients:
        known(identities, recipient)
    for recipient in recipients:
        backend.change("identities", "/".join(recipient), address="another@wa.gw.msging.net")

    # The newest first: reading a dropped identity caches it again.
    remembered = [
        known(identities, recipient) == Identity(ADDRESS) for recipient in reversed(recipients)
    ]

    assert remembered == [True, True, True, False]


def test_invalidated_identity_leaves_table_and_memory(backend: Backend) -> None:
    learn(backend)
    identities = backend.identities()
    known(identities)

    identities.invalidate(RECIPIENT)

    assert known(identities) is None
    assert known(backend.identities()) is None
    assert isinstance(identities.lease(RECIPIENT, LEASE), LookUpLease)


def test_invalidating_an_unknown_recipient_leaves_nothing(backend: Backend) -> None:
    backend.identities().invalidate(RECIPIENT)

    assert backend.item("identities", "/".join(RECIPIENT)) == {}


def test_erased_identity_is_gone_for_that_bot_and_recipient(backend: Backend) -> None:
    learn(backend)
    learn(backend, recipient=("clinic", RECIPIENT[1]))
    identities = backend.identities()
    assert identities.holds(RECIPIENT)

    for _ in range(2):
        identities.erase(RECIPIENT)

    assert not identities.holds(RECIPIENT)
    assert identities.holds(("clinic", RECIPIENT[1]))
    assert backend.item("identities", "/".join(RECIPIENT)) == {}


def test_look_up_during_an_erasure_stores_nothing(backend: Backend) -> None:
    lease = backend.identities().lease(RECIPIENT, LEASE)
    assert isinstance(lease, LookUpLease)
    backend.identities().erase(RECIPIENT)

    backend.identities().store(lease, Identity(ADDRESS))

    assert not backend.identities().holds(RECIPIENT)


def test_erasure_counts_for_all_bots_and_is_not_cached(
    backend: Backend,
) -> None:
    learn(backend)
    other = ("default", "+5511988887777")
    reader = backend.identities()
    assert reader.read([RECIPIENT], [], [])[0][RECIPIENT].address == ADDRESS
    backend.identities().mark_forgotten(RECIPIENT[1])

    of_clinic = ("clinic", RECIPIENT[1])
    known, _, _ = reader.read([RECIPIENT, of_clinic, other], ["default"], [])

    mark = Identity(None, forgotten_at=backend.clock.now())
    assert known == {RECIPIENT: mark, of_clinic: mark}
    item = backend.item("identities", forgotten_key(RECIPIENT[1]))
    assert item["expires_at"] == round(backend.clock.now() + 15 * DAY)
    assert RECIPIENT[1].removeprefix("+") not in str(item)


def test_lease_with_a_lost_answer_is_a_lease(real: RealOnes, aws: Aws) -> None:
    identities = real.identities(dynamodb=LostAnswers(aws.dynamodb))

    lease = identities.lease(RECIPIENT, LEASE)
    assert isinstance(lease, LookUpLease)
    identities.store(lease, Identity(ADDRESS))

    assert known(real.identities()) == Identity(ADDRESS)


class ShortOfBreath:
    """DynamoDB that reads one key per call, and leaves the others for the next."""

    def __init__(self, dynamodb: Any, *, ever: bool = True) -> None:
        self._dynamodb = dynamodb
        self._ever = ever
        self.calls = 0

    def batch_get_item(self, *, RequestItems: Any) -> Any:  # noqa: N803 - boto3's name
        self.calls += 1
        ((table, wanted),) = RequestItems.items()
        assert len(wanted["Keys"]) <= 100
        first, rest = wanted["Keys"][: int(self._ever)], wanted["Keys"][int(self._ever) :]
        answer: dict[str, Any] = {"Responses": {}}
        if first:
            answer = self._dynamodb.batch_get_item(RequestItems={table: {"Keys": first}})
        return answer | {"UnprocessedKeys": {table: {"Keys": rest}} if rest else {}}


def test_unprocessed_keys_are_read_again_and_then_unknown(real: RealOnes, aws: Aws) -> None:
    recipients = [("default", f"+55319999{number:05}") for number in range(5)]
    for recipient in recipients:
        learn(real, recipient=recipient)
    dynamodb = ShortOfBreath(aws.dynamodb)

    found, states, _ = real.identities(dynamodb=dynamodb).read(recipients[:1], ["default"], [])

    assert set(found) == set(recipients[:1])
    assert states == {}
    assert dynamodb.calls == 3

    dynamodb = ShortOfBreath(aws.dynamodb)
    found, _, _ = real.identities(dynamodb=dynamodb).read(recipients[1:3], [], [])
    assert set(found) == set(recipients[1:2])


def test_recipient_with_an_unread_erasure_mark_is_not_known(real: RealOnes, aws: Aws) -> None:
    """Nothing else would find the mark."""
    recipients = [("default", f"+55319999{number:05}") for number in range(4)]
    dynamodb = ShortOfBreath(aws.dynamodb)

    with pytest.raises(UnreadError):
        real.identities(dynamodb=dynamodb).read(recipients, [], [])


def test_more_keys_than_one_request_allows_are_read(real: RealOnes, aws: Aws) -> None:
    recipients = [("default", f"+55319999{number:05}") for number in range(130)]
    for recipient in (recipients[0], recipients[129]):
        learn(real, recipient=recipient)
    aws.calls.clear()

    found, _, _ = real.identities().read(recipients, ["default"], [])

    assert set(found) == {recipients[0], recipients[129]}
    assert [name for name, _ in aws.calls] == ["BatchGetItem"] * 3
