"""The simulator's templates as the client reads them."""

from notifier.blip.templates import read
from notifier.domain.templates import Translation
from tests.local.blip import templates
from tests.local.blip.listing import OtpButton, enriched


def translations(otp_button: OtpButton = "URL") -> dict[tuple[str, str], Translation]:
    """Return the simulator's templates by name and language.

    Args:
        otp_button: what the list calls the button of a one-time code.
    """
    listed = read([enriched(template, 0, otp_button) for template in templates.read()], 0.0)
    assert listed.unreadable == 0
    return {
        (template.name, language): translation
        for template in listed.templates.values()
        for language, translation in template.translations.items()
    }
