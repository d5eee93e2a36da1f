"""Send notifications: from a batch of the requests queue to BLiP. Start here.

Read in this order:

    batch.py            a batch: parse, read what is known, claim, deliver side by side, wait
    delivery.py         one notification, top to bottom: check, claim, identify, send, settle
    reconciliation.py   a send whose outcome is unknown: ask BLiP's history, send again or give up
    templates.py        whether the request fits its template: hold, refuse or let through
    recipients.py       phone number to WhatsApp identity: cache, lease, look-up
    breaker.py          which bots may send: cooldown, probe, open and close, the key read afresh
    service_level.py    which requests go out in time
    outcomes.py         what became of a request: result, dead letter, log line
    round.py            what the notifications of a round share: time, slots, bots on hold
    waits.py            the policy, and every wait
    ports.py            what the tables, queues, secrets and BLiP have to offer
    ../slots.py         how a slot is reserved and waited for; `RetryLater`, for what has to wait

Each module uses only those below it. Every step is recorded before the message is acknowledged,
so a crash at any point loses nothing: dead letter or next generation first, then the ledger.
"""
