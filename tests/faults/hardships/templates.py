"""A template that WhatsApp pauses in the middle of a campaign."""

from tests.faults.blip import Account, described
from tests.faults.hardships.rows import DAY, Came, bot_item, p99_of, publish, sent_twice, waited
from tests.faults.world import Settings, World

BATCH = 10
PAUSED = "order_shipped"
OTHER = "order_photo"


def paused_template(*, requests: int = 10_000, others: int = 600, seed: int = 1) -> Came:
    """Pause the template of a backlog while another one of the same bot goes on."""
    came = Came()
    bot = Account("default", templates=[described(PAUSED), described(OTHER)])
    settings = Settings(registry=True)
    with World(seed, bots=[bot], settings=settings) as world:
        world.run(60)
        published = publish(world, range(requests))
        world.run(30)
        sent_before = len(world.blip.sent)
        bot.paused.add(PAUSED)
        bot.templates[0] = described(PAUSED, "PAUSED")
        first_receipt = world.run_until(lambda: bool(world.blip.failed), at_most=60, every=0.1)
        sent_until_then = len(world.blip.sent)
        template = {"name": OTHER, "language": "pt_BR", "body": ["Maria", "981"]}
        beside = publish(world, range(requests, requests + others), per_second=1, template=template)
        world.run(2 * 3600)
        others_sent = len(waited(world, beside))
        sent_while_paused = len(world.blip.sent) - sent_until_then - others_sent
        spent = sum(item.get("attempts", 0) > 1 for item in world.tables["ledger"].items.values())
        letters = len(world.invariants.letters)
        bot.paused.clear()
        bot.templates[0] = described(PAUSED)
        world.settle(at_most=3 * DAY)
        waits = waited(world, beside)
        delivered = sum(
            item.get("status") in {"received", "consumed"}
            for item in world.tables["ledger"].items.values()
        )
        most = BATCH * settings.concurrency
        came.check(f"{sent_while_paused} sent while it was paused", held=sent_while_paused <= most)
        came.check(f"{letters} dead letters", held=letters == 0)
        came.check(f"{spent} attempts spent", held=spent == 0)
        came.check(f"{others_sent} of the others sent", held=others_sent == others)
        came.check(f"the others' p99 {p99_of(waits):.1f} s", held=p99_of(waits) <= 5)
        came.check(f"{delivered} delivered", held=delivered == requests + others)
        came.broken += sent_twice(world) + world.invariants.broken()
        came.summary = (
            f"{sent_before} sent, then paused; its first receipt after {first_receipt:.1f} s, "
            f"{sent_while_paused} sent after it, {letters} dead letters, {spent} attempts spent; "
            f"the other template's p99 {p99_of(waits):.1f} s; approved again, {delivered} of "
            f"{requests + others} delivered, none twice"
        )
        assert published
    return came


def many_templates(*, count: int = 6000, seed: int = 1) -> Came:
    """Sync as many templates as WhatsApp allows, for the first time and again."""
    came = Came()
    bot = Account("default", templates=[described(f"template_{n}") for n in range(count)])
    with World(seed, bots=[bot], settings=Settings(registry=True)) as world:
        took = []
        for _ in range(2):
            began, before = world.simulation.now, _synced_at(world)
            world.run_until(lambda: _synced_at(world) > before, at_most=120, every=0.5)  # noqa: B023
            took.append(world.simulation.now - began)
            world.run(900 - took[-1])
        kept = sum(key.startswith("template:") for key in world.tables["identities"].items)
        came.check(f"{kept} kept", held=kept == count)
        came.check(f"took {took[0]:.1f} and {took[1]:.1f} s", held=max(took) <= 30)
        came.check(f"{bot.throttled} throttled", held=bot.throttled == 0)
        came.broken += world.invariants.broken()
        came.summary = (
            f"{kept} templates synced in {took[0]:.1f} s, again in {took[1]:.1f} s, at most "
            f"{bot.most_per_second['commands']} commands in any second, {bot.throttled} throttled"
        )
    return came


def _synced_at(world: World) -> int:
    return int(bot_item(world).get("templates_synced_at", 0))
