"""The composition root: builds the use cases out of the settings, once per sandbox.

One module per function, so that none imports what it does not use.
"""

import time

import boto3
from botocore.config import Config

# More threads than the mapping's batch size, so that a batch starts at once.
MAX_THREADS = 32

# An AWS call that hangs must not eat the time of the others: three short tries, then the batch
# comes back later.
AWS = Config(
    connect_timeout=1,
    read_timeout=3,
    retries={"mode": "standard", "total_max_attempts": 3},
    max_pool_connections=MAX_THREADS,
    tcp_keepalive=True,
    # boto3 checks and composes both anew for every call, in a sixth of its processor time. What we
    # ask for is checked by AWS, and by the tests.
    parameter_validation=False,
    user_agent="blip-notifier",
)

__all__ = ["AWS", "MAX_THREADS", "BatchCrashed", "SystemClock", "boto3"]


class BatchCrashed(Exception):
    """Every record of a batch crashed; each has its log line.

    Lambda counts no error for records that are merely named in the answer, and then no alarm of a
    canary would roll a broken release back. The records come back all the same.
    """


class SystemClock:
    """The machine's clock."""

    @staticmethod
    def now() -> float:
        """Return the wall clock in epoch seconds."""
        return time.time()

    @staticmethod
    def sleep(seconds: float) -> None:
        """Wait; no time at all for what lies in the past."""
        if seconds > 0:
            time.sleep(seconds)
