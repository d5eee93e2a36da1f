"""The service level: which requests go out within ten seconds of being allowed to."""

from collections.abc import Iterable

from notifier.use_cases.send_notification.outcomes import Outcome, Result
from notifier.use_cases.send_notification.round import Round

# From the request's publication until its message goes out.
OBJECTIVE_SECONDS = 10.0
# An attempt failed, and neither for the request nor for its bot.
_NOT_SENT = frozenset({Outcome.UNKNOWN, Outcome.RETRYING, Outcome.CRASHED})


def judge(results: Iterable[Result], this_round: Round) -> tuple[int, int]:
    """Return how many requests went out in time, and how many are late.

    A request counts once, when SQS delivers it for the first time. Later it has waited for its bot,
    a slot or its next attempt. A redrive does not count. A request that is old because its bot's
    plan is in use is not late: it was not allowed to go out sooner.
    """
    in_time = late = 0
    for result in results:
        if result.queued.receive_count > 1 or result.queued.generation is not None:
            continue
        if result.sent_as is not None:
            bot, sent = result.sent_as
            if sent.at - result.queued.published_at <= OBJECTIVE_SECONDS:
                in_time += 1
            elif this_round.state(bot).next_message_at <= this_round.began:
                late += 1
        elif result.outcome in _NOT_SENT:
            late += 1
    return in_time, late
