"""Whether a request fits its template, before its recipient is looked up and money is spent.

BLiP answers 202 to a template that cannot be delivered, so the request is compared with what the
registry knows of the template. It is refused only by what BLiP has said since it was published,
because a template may just have been edited. Everything doubtful is sent.
"""

from dataclasses import dataclass, replace

from notifier.contract.fit import misfits
from notifier.contract.problems import summary
from notifier.contract.template import Template
from notifier.domain.bot_state import HoldReason
from notifier.domain.bots import Bot
from notifier.domain.clock import Clock, Meter
from notifier.domain.failures import Failure, FieldError, Reason, Rejected, Throttled
from notifier.domain.notification import Notification
from notifier.domain.templates import Question, RegisteredTemplate, TemplateStatus
from notifier.use_cases.send_notification.breaker import Breaker
from notifier.use_cases.send_notification.ports import Blip, Registry
from notifier.use_cases.send_notification.round import (
    CALL_SECONDS,
    CLOCK_SKEW_SECONDS,
    SETTLE_SECONDS,
    Round,
)
from notifier.use_cases.send_notification.waits import Waits
from notifier.use_cases.slots import RetryLater

# What BLiP has not confirmed for so long is not known any more.
MAX_AGE_SECONDS = 86_400
# After a question that BLiP did not answer.
NO_ANSWER_SECONDS = (30.0, 60.0)


@dataclass(frozen=True, slots=True)
class Templates:
    """Holds, refuses or lets through a request by its template."""

    registry: Registry
    blip: Blip
    breaker: Breaker
    meter: Meter
    clock: Clock
    waits: Waits

    def hold(self, notification: Notification, this_round: Round) -> None:
        """Go on only if the template is not known to be paused.

        Raises:
            RetryLater: WhatsApp has paused it. Its requests wait, those of other templates do not.
        """
        template = notification.request.template
        state = this_round.state(notification.request.bot)
        if state.holds(template.name, template.language, self.clock.now()):
            raise RetryLater(None, HoldReason.TEMPLATE_PAUSED)

    def check(self, notification: Notification, bot: Bot, this_round: Round) -> None:
        """Go on only if the request fits its template, as far as anything is known of that.

        Raises:
            Rejected: it does not (`template_mismatch`), or cannot be sent (`template_unavailable`).
            RetryLater: the template is paused, or BLiP has to be asked about it first.
        """
        template = notification.request.template
        known = this_round.templates.get(notification.template)
        if known is None or known.asked_at < self.clock.now() - MAX_AGE_SECONDS:
            self.meter.count("template_unknown")
            return
        problem = _problem(template, known)
        # If a later sync had found it paused as well, the bot's item would say so.
        synced_at = this_round.state(bot.name).templates_synced_at
        is_old = problem is HoldReason.TEMPLATE_PAUSED and known.asked_at < synced_at
        if problem is not None and (is_old or not _is_proof(known, notification)):
            known = self._as_it_is_now(notification, bot, this_round)
            problem = _problem(template, known)
        if problem is HoldReason.TEMPLATE_PAUSED:
            self.registry.pause(bot.name, template.name, template.language)
            raise RetryLater(None, problem)
        if isinstance(problem, Rejected):
            raise problem
        if _is_doubtful(template, known):
            self.meter.count("template_unknown")

    def _as_it_is_now(
        self, notification: Notification, bot: Bot, this_round: Round
    ) -> RegisteredTemplate:
        """Return what BLiP says of a template since the request was published.

        Raises:
            RetryLater: BLiP does not answer, or was asked within the last minute.
        """
        name = notification.request.template.name
        question = this_round.once.ask(
            ("template", bot.name, name), lambda: self._ask(name, bot, this_round)
        )
        stored = question.stored
        fits = _problem(notification.request.template, stored) is None
        if question.granted or fits or _is_proof(stored, notification):
            return stored
        raise RetryLater(self.waits.jittered(max(0.0, question.again_at - self.clock.now()), 5))

    def _ask(self, name: str, bot: Bot, this_round: Round) -> Question:
        """Ask BLiP for one template: one sandbox a minute, for all notifications of its round."""
        time_for_it = CALL_SECONDS + SETTLE_SECONDS
        this_round.needs(time_for_it)
        question = self.registry.question(bot.name, name)
        if not question.granted:
            return question

        def on_connected() -> None:
            this_round.wait_for_slot(bot, "commands", known=True, after=time_for_it)

        asked_at = self.clock.now()
        try:
            template = self.breaker.with_fresh_key(
                bot, lambda bot: self.blip.template(bot, name, asked_at, on_connected)
            )
        except Throttled as failure:
            seconds = self.breaker.start_cooldown(bot, "commands", failure, this_round)
            wait = self.waits.for_cooldown(seconds)
            raise RetryLater(wait, HoldReason.COOLING_DOWN) from None
        except Rejected:  # this BLiP cannot be asked for one template, and never will be
            template = None
        except Failure:  # none of them is an answer, and this was no attempt
            raise RetryLater(self.waits.uniform(*NO_ANSWER_SECONDS)) from None
        self.meter.count("template_asked")
        # What BLiP does not list is unknown in every sandbox until the next sync.
        answer = replace(template or RegisteredTemplate(name, asked_at, {}), is_whole=True)
        self.registry.keep(bot.name, answer)
        return Question(granted=True, stored=answer, again_at=0.0)


def _problem(template: Template, known: RegisteredTemplate) -> Rejected | HoldReason | None:
    """Return what is wrong with a request's template; None for what fits, or is doubtful."""
    if not known.translations:  # BLiP does not list it, which proves nothing
        return None
    translation = known.translations.get(template.language)
    if translation is None:
        return _unavailable(f"the template has no translation {template.language}")
    match translation.status:
        case TemplateStatus.REJECTED | TemplateStatus.DISABLED as status:
            return _unavailable(f"WhatsApp has {status.lower()} the template")
        case TemplateStatus.PAUSED:
            return HoldReason.TEMPLATE_PAUSED
        case TemplateStatus.APPROVED:
            fields = misfits(template, translation)
            return _mismatch(fields) if fields else None
        case _:
            return None


def _is_doubtful(template: Template, known: RegisteredTemplate) -> bool:
    """Return whether a request goes out although it is not known whether it fits."""
    translation = known.translations.get(template.language)
    if translation is None or translation.status is not TemplateStatus.APPROVED:
        return True
    return not translation.is_understood


def _is_proof(known: RegisteredTemplate, notification: Notification) -> bool:
    """Return whether the registry may refuse a request: by what BLiP has said since, and whole."""
    since = notification.queued.published_at + CLOCK_SKEW_SECONDS
    has_language = notification.request.template.language in known.translations
    return known.asked_at >= since and (has_language or known.is_whole)


def _unavailable(detail: str) -> Rejected:
    return Rejected(Reason.TEMPLATE_UNAVAILABLE, detail)


def _mismatch(fields: tuple[FieldError, ...]) -> Rejected:
    return Rejected(Reason.TEMPLATE_MISMATCH, summary(fields, len(fields)), fields=fields)
