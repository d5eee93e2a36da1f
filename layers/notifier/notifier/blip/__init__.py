"""Everything that knows BLiP or LIME, BLiP's protocol. Imports httpx; never AWS.

A LIME "notification" is what the rest of the package calls a receipt: the word with that meaning
stays in here.
"""
