"""moto's tables."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import boto3
import pytest
from moto import mock_aws
from moto.dynamodb.comparisons import FuncSize

from notifier.aws.table import Table
from tests.faults.simulated_aws.tables import simulated_table
from tests.support.clock import Clock
from tests.support.simulated_aws.dynamodb import DirectAws, SimTable
from tests.template.transformed import load

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


@pytest.fixture(scope="module")
def session() -> Iterator[boto3.Session]:
    with mock_aws():
        yield boto3.Session("testing", "testing", region_name="us-east-1")


@pytest.fixture(scope="module")
def dynamodb(session: boto3.Session) -> Iterator["DynamoDBClient"]:
    """A client of an AWS that has the stack's tables twice, as the template makes them."""
    client = session.client("dynamodb")
    tables = {"ledger": "LedgerTable", "identities": "IdentitiesTable"}
    for name, resource in (tables | {"indexed": "LedgerTable", "plain": "IdentitiesTable"}).items():
        properties = load().properties(resource)
        asked = ("KeySchema", "AttributeDefinitions", "GlobalSecondaryIndexes", "BillingMode")
        client.create_table(
            TableName=name, **{each: properties[each] for each in asked if each in properties}
        )
    measured = FuncSize.expr

    def measure(self: FuncSize, item: Any) -> Any:
        return None if self.attr.get_type(item) is None else measured(self, item)

    # To moto the size of what is missing is an error of its own; to DynamoDB it is missing.
    with mock.patch.object(FuncSize, "expr", measure):
        yield client


@pytest.fixture(params=["moto", "simulated"])
def table(request: pytest.FixtureRequest) -> Table:
    if request.param == "moto":
        return Table(request.getfixturevalue("dynamodb"), "plain")
    return simulated_table()


@pytest.fixture(params=["moto", "simulated"])
def indexed(request: pytest.FixtureRequest) -> Table:
    if request.param == "moto":
        return Table(request.getfixturevalue("dynamodb"), "indexed")
    return SimTable("indexed", DirectAws(Clock().now), page=2)
