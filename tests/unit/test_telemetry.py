"""What the threads of a batch measure."""

import logging
from unittest import mock

import pytest
from aws_lambda_powertools.metrics import MetricUnit

from notifier import telemetry


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    metrics = mock.Mock()
    monkeypatch.setattr(telemetry, "metrics", metrics)
    return metrics.add_metric  # type: ignore[no-any-return] # a mock's attribute is one


def test_every_measurement_is_emitted_once(added: mock.Mock) -> None:
    meter = telemetry.Meter()
    meter.took("published_to_claimed", 1.5)
    meter.age("oldest_request", 7)
    meter.count("look_up", 2)
    meter.count("identity_hit", 0)

    meter.flush()
    meter.flush()

    assert [call.args[:3] for call in added.call_args_list] == [
        ("published_to_claimed", MetricUnit.Milliseconds, 1500),
        ("oldest_request", MetricUnit.Seconds, 7),
        ("look_up", MetricUnit.Count, 2),
    ]


def test_no_duration_is_negative_if_two_clocks_differ(added: mock.Mock) -> None:
    """SQS's clock says when a request was published, a sandbox's when it was claimed."""
    meter = telemetry.Meter()
    meter.took("published_to_claimed", -0.004)
    meter.age("oldest_request", -0.004)

    meter.flush()

    assert [call.args[2] for call in added.call_args_list] == [0, 0]


def test_all_modules_log_to_the_configured_logger() -> None:
    assert telemetry.logger._logger is logging.getLogger("notifier")
