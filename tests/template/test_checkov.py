"""What checkov finds in the transformed template, with a key of the customer's own and without."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.template.transformed import ROOT, load

KEY = "arn:aws:kms:sa-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
# What it finds, and why it stays.
EXPLAINED = {
    "CKV_AWS_115": "a function's own concurrency limit makes the queue's poller lose messages to"
    " throttles; MaximumConcurrency on the mapping is the limit",
    "CKV_AWS_116": "a function's dead-letter queue is for asynchronous calls; these are polled or"
    " called, and the queues have their own",
    "CKV_AWS_117": "nothing that the functions need lies in a VPC",
}
# What it finds besides where the parameter KmsKeyArn is not set.
OF_AWS_KEYS = {
    "CKV_AWS_26": "the alarms' topic: SNS's own key of AWS lets no alarm publish",
    "CKV_AWS_27": "queues are encrypted with SQS's own keys, which cost nothing",
    "CKV_AWS_119": "tables likewise, with DynamoDB's",
    "CKV_AWS_149": "secrets likewise, with the account's key for Secrets Manager",
    "CKV_AWS_158": "logs likewise, with CloudWatch's; they hold nothing personal",
    "CKV_AWS_173": "settings likewise, with Lambda's; they hold names and numbers, no secret",
}


@pytest.mark.parametrize(
    ("key", "explained"),
    [(KEY, EXPLAINED), ("", EXPLAINED | OF_AWS_KEYS)],
    ids=["own key", "AWS's keys"],
)
def test_checkov_finds_nothing_unexplained(
    tmp_path: Path, key: str, explained: dict[str, str]
) -> None:
    template = tmp_path / "template.json"
    template.write_text(
        json.dumps(load(KmsKeyArn=key, AlarmEmail="on-call@example.com").as_deployed()),
        encoding="utf-8",
    )

    answer = subprocess.run(  # noqa: S603
        [
            *(ROOT / ".venv-checkov/bin/checkov", "--framework", "cloudformation"),
            *("--file", template, "--skip-download", "--quiet", "--output", "json"),
        ],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )

    found = json.loads(answer.stdout)["results"]["failed_checks"]
    unexplained = [
        f"{one['check_id']} {one['check_name']}: {one['resource']}"
        for one in found
        if one["check_id"] not in explained
    ]
    assert unexplained == []
    # What it finds is seen, and no explanation is stale.
    assert {one["check_id"] for one in found} == explained.keys()
    functions = len(load().resources("AWS::Lambda::Function"))
    counts = Counter(one["check_id"] for one in found)
    assert {check: counts[check] for check in EXPLAINED} == dict.fromkeys(EXPLAINED, functions)
