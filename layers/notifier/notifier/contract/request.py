"""The contract: what a producer may put on the requests queue. The template is in `template.py`."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from notifier.contract.rules import RFC_3339, SEPARATOR, Strict, moment, recipient, says
from notifier.contract.template import Template
from notifier.domain.bots import NAME_PATTERN as BOT_PATTERN

ID_PATTERN = r"^[A-Za-z0-9._:~-]{1,128}$"
CORRELATION_PATTERN = r"^[!-~]{1,128}$"


class NotificationRequest(Strict):
    """One business message to one recipient.

    Attributes:
        id: chosen by the producer, 1 to 128 of `A-Z a-z 0-9 . _ : ~ -`. The same id of the same bot
            is the same notification for 45 days.
        to: the recipient's number in E.164, with `+`; spaces, dashes and parentheses are dropped.
        template: what is sent.
        bot: which bot sends it, by its name in the bots' configuration.
        valid_until: RFC 3339 with offset; it is never sent after that, also not after a redrive.
        if_unknown: what follows when it is unknown whether it went out, and BLiP's history does
            not show it: `resend` it (the recipient may, rarely, get it twice) or let it `fail`.
        metadata: comes back in status events and never goes to BLiP: at most 10 texts of at most
            256 characters, with names of at most 64.
        correlation_id: names the producer's own piece of work, 1 to 128 of the visible ASCII
            characters: comes back in logs and status events. No part of the content: the same
            request may come again with another one.
    """

    id: Annotated[
        str,
        Field(pattern=ID_PATTERN, examples=["order-981-shipped"]),
        says("must be 1 to 128 of letters, digits and . _ : ~ -"),
    ]
    to: Annotated[
        str,
        Field(
            examples=["+5531999998888"],
            # Spaces, dashes and parentheses anywhere; a + before the first digit.
            json_schema_extra={
                "pattern": rf"^{SEPARATOR}*\+({SEPARATOR}*[0-9]){{4,17}}{SEPARATOR}*$"
            },
        ),
        says("must be a phone number as a text, with + and the country code"),
        AfterValidator(recipient),
    ]
    template: Template
    bot: Annotated[
        str,
        Field(pattern=BOT_PATTERN),
        says("must be 1 to 64 of letters, digits, _ and -"),
    ] = "default"
    valid_until: (
        Annotated[
            datetime,
            Field(json_schema_extra={"pattern": rf"^{RFC_3339.pattern}$"}),
            BeforeValidator(moment),
        ]
        | None
    ) = None
    if_unknown: Annotated[Literal["resend", "fail"], says("must be resend or fail")] = "resend"
    metadata: Annotated[
        dict[
            Annotated[
                str,
                Field(min_length=1, max_length=64),
                says("its name must be of 1 to 64 characters"),
            ],
            Annotated[str, Field(max_length=256), says("must be a text of at most 256 characters")],
        ],
        Field(max_length=10),
    ] = Field(default_factory=dict)
    correlation_id: (
        Annotated[
            str,
            Field(pattern=CORRELATION_PATTERN),
            says("must be 1 to 128 visible ASCII characters without spaces"),
        ]
        | None
    ) = None
