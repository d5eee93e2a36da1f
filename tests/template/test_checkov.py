"""What checkov finds in the transformed template, with a key of the customer's own."""

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

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


def test_it_finds_nothing_that_is_not_explained(tmp_path: Path) -> None:
    transformed = tmp_path / "transformed.json"
    transformed.write_text(json.dumps(load(KmsKeyArn=KEY).transformed), encoding="utf-8")

    answer = subprocess.run(  # noqa: S603
        [
            *(ROOT / ".venv-checkov/bin/checkov", "--framework", "cloudformation"),
            *("--file", transformed, "--skip-download", "--quiet", "--output", "json"),
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
        if one["check_id"] not in EXPLAINED
    ]
    assert unexplained == []
    # Every function has each of them: so what it finds is seen, and no explanation is stale.
    functions = len(load().resources("AWS::Lambda::Function"))
    assert Counter(one["check_id"] for one in found) == dict.fromkeys(EXPLAINED, functions)
