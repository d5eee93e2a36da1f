"""A flood of receipts at the local stack's webhook, with bad ones among them."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from notifier.domain.notification import ledger_key
from tests.faults.deployed import Message, deployed, depth, is_quiet, ledger_items, publish
from tests.faults.long_runs import request
from tests.local.blip import Bot
from tests.local.machine import wait_until
from tests.local.stack import SIMULATED_BOTS, LocalStack

SENT = 500
# About these only bad ones come: nothing of them may be believed.
VICTIMS = 20
EVENTS = ("accepted", "dispatched", "received", "consumed")
BAD_OF_EACH = 20
# ministack starts a sandbox for each call that finds none free.
CONCURRENCY = 8
TRIES = 5
FIRST = 1_000_000  # the simulator does odd things with smaller numbers


@dataclass(frozen=True)
class Post:
    """A request to the webhook.

    Attributes:
        status: of the answer that it deserves.
    """

    body: bytes
    status: int = 200
    secret: str | None = None


@dataclass
class Flooded:
    """What came of a flood.

    Attributes:
        recorded: receipts that were answered 200, of which everything that they say is recorded.
        lost: notifications that do not stand where their receipts say.
        let_in: bad ones that were believed, or answered as if they were good.
    """

    recorded: int = 0
    bad: int = 0
    lost: int = 0
    let_in: int = 0
    broken: list[str] = field(default_factory=list)


def flood(receipts: int) -> Flooded:
    """Post so many receipts at once, in any order and some of them again, among bad ones."""
    chance = random.Random(1)
    with deployed({}) as stack:
        blip = stack.simulator
        assert blip
        for name in SIMULATED_BOTS.values():
            blip.put_bot(Bot(name=name, webhook=False))
        requests = [request(FIRST + number) for number in range(SENT + VICTIMS)]
        publish(stack, [Message(json.dumps(each)) for each in requests])
        wait_until(lambda: is_quiet(stack) and blip.inbox(), "all to be sent", every=1)
        keys = [ledger_key("default", each["id"]) for each in requests]
        ours, victims = keys[:SENT], keys[SENT:]
        posted = [(key, event) for key in ours for event in EVENTS]
        posted += chance.choices(posted, k=receipts - len(posted))
        secret = stack.aws.secrets.get_secret_value(SecretId=stack.resources["WebhookSecret"])
        good = [Post(_receipt(*each), secret=secret["SecretString"]) for each in posted]
        bad = _bad(victims, secret["SecretString"])
        posts = good + bad
        chance.shuffle(posts)
        answers = asyncio.run(_post_all(stack, posts))
        wait_until(lambda: is_quiet(stack), "all receipts to be recorded", at_most=900, every=1)
        statuses = {item["key"]["S"]: item["status"]["S"] for item in ledger_items(stack)}
        letters = depth(stack, stack.dead_letters_queue)
        given_up = depth(stack, stack.resources["ReceiptsDeadLettersQueue"])
    result = Flooded(recorded=len(good), bad=len(bad))
    result.lost = sum(statuses.get(key) != "consumed" for key in ours)
    result.let_in = sum(statuses.get(key) != "sent" for key in victims)
    wrong = Counter(
        (post.status, answer)
        for post, answer in zip(posts, answers, strict=True)
        if post.status != answer
    )
    result.let_in += sum(count for (deserved, _), count in wrong.items() if deserved != 200)
    if result.lost or result.let_in or letters or given_up or wrong:
        result.broken.append(
            f"{result.lost} lost, {result.let_in} let in, {letters} dead letters, {given_up} given"
            f" up, answers other than deserved: {dict(wrong)}"
        )
    return result


def _receipt(key: str, event: str, **more: Any) -> bytes:
    receipt = {"id": key, "from": "postmaster@msging.net", "to": "bot@msging.net", "event": event}
    return json.dumps(receipt | more).encode()


def _bad(victims: Sequence[str], secret: str) -> list[Post]:
    failed = [
        _receipt(key, "failed", reason={"code": 131047, "description": "not so"})
        for key in victims[:BAD_OF_EACH]
    ]
    posts = [Post(each, 401) for each in failed]
    posts += [Post(each, 401, "guessed") for each in failed]
    for body, status in (
        (b"no JSON", 400),
        (json.dumps([json.loads(failed[0])]).encode(), 400),
        (_receipt(victims[0], "exploded"), 400),
    ):
        posts += [Post(body, status, secret)] * BAD_OF_EACH
    large = _receipt(victims[0], "failed", metadata={"padding": "x" * 10_000_000})
    return posts + [Post(large, 413, secret)] * 3


async def _post_all(stack: LocalStack, posts: Sequence[Post]) -> list[int]:
    """Post everything, as much at once as the local AWS can bear; again what it failed on."""
    gate = asyncio.Semaphore(CONCURRENCY)
    # The local AWS goes by the host header.
    host = f"{stack.resources['HttpApi']}.execute-api.localhost:{urlsplit(stack.aws.url).port}"

    async def post(session: aiohttp.ClientSession, one: Post) -> int:
        headers = {"Content-Type": "application/json", "Host": host}
        if one.secret is not None:
            headers["X-Receipts-Secret"] = one.secret
        status = 0
        for _ in range(TRIES):
            async with (
                gate,
                session.post(f"{stack.aws.url}/receipts", data=one.body, headers=headers) as answer,
            ):
                await answer.read()
            status = answer.status
            if status < 500:
                break
        return status

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        return await asyncio.gather(*(post(session, one) for one in posts))
