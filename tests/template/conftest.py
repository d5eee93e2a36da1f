import pytest

from tests.template.transformed import Template, load


@pytest.fixture(scope="session")
def template() -> Template:
    return load()


@pytest.fixture(scope="session")
def production() -> Template:
    return load(CanaryDeployments="true", Release="4f1d2c9e7a", AlarmTopicArn=TOPIC)


TOPIC = "arn:aws:sns:sa-east-1:123456789012:alarms"
