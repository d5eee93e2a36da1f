"""Rules of AWS that no linter knows: causes of refused deploys and of later regret.

A rule takes a template and returns what breaks it, one text each. Its docstring names the page of
AWS's documentation, or the report, that it comes from. `BREAKS` holds changes that break each rule.
"""

import copy
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER  # type: ignore[import-untyped]

from tests.template.transformed import Template, as_list, mentions

type Json = dict[str, Any]
type Rule = Callable[[Template], Iterator[str]]
type Change = Callable[[Json], object]

RULES: list[Rule] = []
REGION = "sa-east-1"
# A name that CloudFormation makes up is as long as the stack's name, the logical id, and thirteen
# characters; an ARN or a URL has account, region and service around it.
MAX_REFERENCE = 256
# CloudFormation, "Parameters": a value has at most 4,096 bytes.
MAX_PARAMETER = 4096
# The indexes of the tables of deployed stacks. Add an index here when every stack has it.
DEPLOYED_INDEXES = {"LedgerTable": {"polls"}, "IdentitiesTable": set[str]()}
STATEFUL = [
    "AWS::DynamoDB::Table",
    "AWS::SQS::Queue",
    "AWS::SecretsManager::Secret",
    "AWS::ApiGatewayV2::Api",
    "AWS::Logs::LogGroup",
]


def rule(check: Rule) -> Rule:
    RULES.append(check)
    return check


def resources(template: Template, type_: str) -> dict[str, Json]:
    """Return the properties of the resources of a type, with conditions decided."""
    return {
        name: resource["Properties"]
        for name, resource in template.as_deployed()["Resources"].items()
        if resource["Type"] == type_
    }


def number(template: Template, expression: Any) -> int:
    return int(template.value(expression))


def size(template: Template, node: Any) -> int:
    """Return how long a value can be once CloudFormation has resolved it."""
    match node:
        case {"Ref": str(name)} if name in template.parameters:
            definition = template.source["Parameters"][name]
            if definition["Type"] == "Number":
                return len(str(definition["MaxValue"]))
            if "AllowedValues" in definition:
                return max(len(str(value)) for value in definition["AllowedValues"])
            return int(definition.get("MaxLength", MAX_PARAMETER))
        case {"Fn::Split": [_, {"Ref": str(name)} as value]}:
            # Quotes around each, and of an account IAM makes `arn:aws:iam::123456789012:root`.
            accounts = _most_items(template.source["Parameters"][name])
            return size(template, value) + 31 * accounts + 3 * (size(template, value) // 30)
        case {"Fn::Sub": str(text)}:
            return len(re.sub(r"\$\{[^}]*\}", "x" * MAX_REFERENCE, text))
        case {"Ref": _} | {"Fn::GetAtt": _}:
            return MAX_REFERENCE
        case dict():
            return 2 + sum(len(name) + 4 + size(template, value) for name, value in node.items())
        case list():
            return 2 + sum(1 + size(template, value) for value in node)
        case _:
            return len(json.dumps(node))


# --- SQS ------------------------------------------------------------------------------------------


@rule
def one_resource_per_statement_of_a_queue(template: Template) -> Iterator[str]:
    """SQS: "Each policy must cover only a single queue"; a statement takes one resource.

    AccessPolicyLanguage_SpecialInfo.html in SQS's Developer Guide; what is refused is reported in
    remind101/stacker_blueprints#71 and hashicorp/terraform-provider-aws#42209: "Invalid value for
    the parameter Policy".
    """
    for name, policy in resources(template, "AWS::SQS::QueuePolicy").items():
        if len(policy["Queues"]) != 1:
            yield f"{name} is for {len(policy['Queues'])} queues"
        queue = mentions(policy["Queues"][0])
        for statement in policy["PolicyDocument"]["Statement"]:
            named = as_list(statement["Resource"])
            if len(named) != 1 or mentions(named) != queue:
                yield f"{name}, {statement['Sid']} is about {len(named)}: {mentions(named)}"


@rule
def one_policy_per_queue(template: Template) -> Iterator[str]:
    """A queue has one attribute `Policy`: a second `AWS::SQS::QueuePolicy` overwrites the first.

    SetQueueAttributes in SQS's API Reference; hashicorp/terraform#12003.
    """
    policies = resources(template, "AWS::SQS::QueuePolicy").values()
    covered = [
        name for policy in policies for queue in policy["Queues"] for name in mentions(queue)
    ]
    for name in resources(template, "AWS::SQS::Queue"):
        if covered.count(name) != 1:
            yield f"{name} has {covered.count(name)} policies"


@rule
def queue_policies_are_small(template: Template) -> Iterator[str]:
    """At most 8,192 bytes, 20 statements, 50 principals, 10 conditions, 7 actions each.

    quotas-policies.html in SQS's Developer Guide. A principal may come from a parameter: what its
    pattern lets through counts.
    """
    for name, policy in resources(template, "AWS::SQS::QueuePolicy").items():
        statements = policy["PolicyDocument"]["Statement"]
        principals = sum(_principals(template, one["Principal"]) for one in statements)
        conditions = sum(
            len(keys) for one in statements for keys in one.get("Condition", {}).values()
        )
        if size(template, policy["PolicyDocument"]) > 8192:
            yield f"{name} may have {size(template, policy['PolicyDocument'])} bytes"
        if len(statements) > 20 or principals > 50 or conditions > 10:
            counts = (len(statements), principals, conditions)
            yield f"{name}: statements, principals, conditions {counts}"
        for statement in statements:
            if len(as_list(statement["Action"])) > 7:
                yield f"{name}, {statement['Sid']} has more than 7 actions"


def _principals(template: Template, principal: Any) -> int:
    if principal == "*":
        return 1
    count = 0
    for named in principal.values():
        match named:
            case {"Fn::Split": [",", {"Ref": parameter}]}:
                count += _most_items(template.source["Parameters"][parameter])
            case _:
                count += len(as_list(named))
    return count


def _most_items(definition: Json) -> int:
    """Return how many account numbers a parameter's pattern lets through."""
    accounts = itertools.takewhile(
        lambda n: re.fullmatch(definition["AllowedPattern"], ",".join(["123456789012"] * n)),
        range(1, MAX_PARAMETER // 13 + 1),
    )
    return max(accounts, default=0)


@rule
def queues_are_within_their_bounds(template: Template) -> Iterator[str]:
    """Visibility 0 to 43,200 s, retention 60 to 1,209,600 s, 1,048,576 bytes, 1,000 receive_count.

    SetQueueAttributes in SQS's API Reference; maxReceiveCount in its Developer Guide,
    sqs-dead-letter-queues.html.
    """
    bounds = {
        "VisibilityTimeout": (0, 43_200),
        "MessageRetentionPeriod": (60, 1_209_600),
        "MaximumMessageSize": (1_024, 1_048_576),
        "DelaySeconds": (0, 900),
    }
    for name, queue in resources(template, "AWS::SQS::Queue").items():
        for attribute, (low, high) in bounds.items():
            if attribute in queue and not low <= number(template, queue[attribute]) <= high:
                yield f"{name}.{attribute} is {number(template, queue[attribute])}"
        receive_count = queue.get("RedrivePolicy", {}).get("maxReceiveCount", 1)
        if not 1 <= number(template, receive_count) <= 1000:
            yield f"{name}.maxReceiveCount is {receive_count}"


@rule
def dead_letters_are_kept_for_as_long_as_their_source(template: Template) -> Iterator[str]:
    """The age of a message that SQS moves counts from when it was first sent.

    sqs-dead-letter-queues.html in SQS's Developer Guide: the dead-letter queue's retention must be
    as long as the source's at least.
    """
    queues = resources(template, "AWS::SQS::Queue")
    for name, queue in queues.items():
        for target in mentions(queue.get("RedrivePolicy", {})):
            kept, first = (
                q.get("MessageRetentionPeriod", 345_600) for q in (queues[target], queue)
            )
            if number(template, kept) < number(template, first):
                yield f"{target} forgets before {name} does"


@rule
def nothing_comes_back_while_it_is_worked_on(template: Template) -> Iterator[str]:
    """Lambda refuses a visibility timeout below the function's timeout, and asks for six of them.

    services-sqs-configure.html in Lambda's Developer Guide. Batches of more than ten need a window
    of a second; MaximumConcurrency is 2 to 1,000.
    """
    functions = resources(template, "AWS::Lambda::Function")
    queues = resources(template, "AWS::SQS::Queue")
    for name, mapping in resources(template, "AWS::Lambda::EventSourceMapping").items():
        (queue,) = mentions(mapping["EventSourceArn"])
        if queue not in queues:
            continue
        function = functions[_function(mapping)]
        visibility = number(template, queues[queue].get("VisibilityTimeout", 30))
        window = mapping.get("MaximumBatchingWindowInSeconds", 0)
        if visibility < 6 * number(template, function["Timeout"]) + window:
            yield f"{queue} has {visibility} s, a batch may take {function['Timeout']} s"
        if mapping["BatchSize"] > 10 and not window:
            yield f"{name} takes batches of {mapping['BatchSize']} without a window"
        most = number(template, mapping["ScalingConfig"]["MaximumConcurrency"])
        if not 2 <= most <= 1000:
            yield f"{name} has a MaximumConcurrency of {most}"


def _function(mapping: Json) -> str:
    (alias,) = mentions(mapping["FunctionName"])
    return alias.removesuffix("Aliaslive")


# --- streams --------------------------------------------------------------------------------------


def _mappings_of_streams(template: Template) -> dict[str, Json]:
    return {
        name: mapping
        for name, mapping in resources(template, "AWS::Lambda::EventSourceMapping").items()
        if "StreamArn" in json.dumps(mapping["EventSourceArn"])
    }


@rule
def mappings_of_streams_are_within_their_bounds(template: Template) -> Iterator[str]:
    """Batches of 10,000, ten at a time, a window of 300 s; records of 60 to 604,800 s, or any age.

    services-ddb-params.html in Lambda's Developer Guide; CreateEventSourceMapping in its API
    Reference, which keeps ScalingConfig to queues and AT_TIMESTAMP to others. DynamoDB drops a
    record after 24 hours: a mapping that allows that age is never informed of the loss.
    """
    bounds = {
        "BatchSize": (1, 10_000),
        "ParallelizationFactor": (1, 10),
        "MaximumBatchingWindowInSeconds": (0, 300),
        "MaximumRetryAttempts": (-1, 10_000),
        "MaximumRecordAgeInSeconds": (60, 86_399),
    }
    for name, mapping in _mappings_of_streams(template).items():
        for key, (low, high) in bounds.items():
            if key in mapping and not low <= number(template, mapping[key]) <= high:
                yield f"{name}.{key} is {mapping[key]}"
        if mapping["StartingPosition"] not in {"TRIM_HORIZON", "LATEST"}:
            yield f"{name} starts at {mapping['StartingPosition']}"
        for key in ("ScalingConfig", "ProvisionedPollerConfig", "Queues", "Topics"):
            if key in mapping:
                yield f"{name} has a {key}, which streams have not"


@rule
def filters_of_mappings_are_patterns(template: Template) -> Iterator[str]:
    """Five filters of 4,096 characters; JSON whose leaves are lists; of DynamoDB's types, strings.

    invocation-eventfiltering.html and with-ddb-filtering.html in Lambda's Developer Guide: "numeric
    filtering isn't supported for DynamoDB", and what is no pattern matches nothing, silently.
    """
    for name, mapping in resources(template, "AWS::Lambda::EventSourceMapping").items():
        filters = mapping.get("FilterCriteria", {}).get("Filters", [])
        if len(filters) > 5:
            yield f"{name} has {len(filters)} filters"
        for one in filters:
            if len(one["Pattern"]) > 4096:
                yield f"{name} has a filter of {len(one['Pattern'])} characters"
            yield from (f"{name}: {problem}" for problem in _pattern(json.loads(one["Pattern"])))


def _pattern(node: Any) -> Iterator[str]:
    match node:
        case {**fields} if fields:
            for below in fields.values():
                yield from _pattern(below)
        case [*leaves] if leaves and all(isinstance(leaf, str | dict) for leaf in leaves):
            if any("numeric" in leaf for leaf in leaves if isinstance(leaf, dict)):
                yield f"compares numbers: {leaves}"
        case _:
            yield f"is no pattern: {node}"


@rule
def streams_have_the_images_that_filters_look_at(template: Template) -> Iterator[str]:
    """A record has the images of the stream's view type only, and a filter on others drops it.

    StreamSpecification in DynamoDB's API Reference.
    """
    tables = resources(template, "AWS::DynamoDB::Table")
    for name, mapping in _mappings_of_streams(template).items():
        (table,) = mentions(mapping["EventSourceArn"])
        view = tables[table].get("StreamSpecification", {}).get("StreamViewType", "no stream")
        text = json.dumps(mapping.get("FilterCriteria", {}))
        for image, views in (("NewImage", "NEW"), ("OldImage", "OLD")):
            if view == "no stream" or (image in text and views not in view):
                yield f"{name} filters by {image}, and {table} has {view}"


@rule
def a_stream_has_two_readers_at_most(template: Template) -> Iterator[str]:
    """More than two processes on one shard are throttled.

    Streams.html in DynamoDB's Developer Guide, and LimitExceededException of GetRecords in its API
    Reference.
    """
    read = [
        name
        for mapping in _mappings_of_streams(template).values()
        for name in mentions(mapping["EventSourceArn"])
    ]
    for table in set(read):
        if read.count(table) > 2:
            yield f"{table}'s stream has {read.count(table)} readers"


@rule
def who_reads_a_stream_may(template: Template) -> Iterator[str]:
    """Lambda refuses a mapping whose function's role may not read the stream.

    services-dynamodb-eventsourcemapping.html in Lambda's Developer Guide; the resource of
    ListStreams as in iam-policy-read-stream-only.html in DynamoDB's, and in SAM's
    DynamoDBStreamReadPolicy; for the destination of what is dropped, services-dynamodb-errors.html.
    """
    reading = {f"dynamodb:{one}" for one in ("GetRecords", "GetShardIterator", "DescribeStream")}
    functions, roles = (
        resources(template, type_) for type_ in ("AWS::Lambda::Function", "AWS::IAM::Role")
    )
    for name, mapping in _mappings_of_streams(template).items():
        (role,) = mentions(functions[_function(mapping)]["Role"])
        (table,) = mentions(mapping["EventSourceArn"])
        needed = {
            json.dumps(mapping["EventSourceArn"]): reading,
            json.dumps({"Fn::Sub": f"${{{table}.Arn}}/stream/*"}): {"dynamodb:ListStreams"},
        }
        if "DestinationConfig" in mapping:
            destination = mapping["DestinationConfig"]["OnFailure"]["Destination"]
            needed[json.dumps(destination)] = {"sqs:SendMessage"}
        for policy in roles[role]["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                for resource in map(json.dumps, as_list(statement["Resource"])):
                    if resource in needed:
                        needed[resource] = needed[resource] - set(as_list(statement["Action"]))
        for resource, lacking in needed.items():
            if lacking:
                yield f"{role}, for {name}, lacks {sorted(lacking)} on {resource}"


# --- CloudWatch -----------------------------------------------------------------------------------

_INSIGHTS = re.compile(
    r"""SELECT\s+(AVG|COUNT|MAX|MIN|SUM)\("?[\w.]+"?\)
        \s+FROM\s+("[^"]+"|\w+|SCHEMA\([^)]*\))
        (\s+WHERE\s+{term}(\s+AND\s+{term})*)?
        (\s+GROUP\s+BY\s+[\w",\s]+?)?
        (\s+ORDER\s+BY\s+(AVG|COUNT|MAX|MIN|SUM)\(\)(\s+(ASC|DESC))?)?
        (\s+LIMIT\s+\d+)?\s*""".replace("{term}", r"""("[^"]+"|\w+)\s*(=|!=)\s*'[^']*'"""),
    re.VERBOSE | re.IGNORECASE,
)


def _expressions(alarm: Json) -> list[str]:
    found = [query["Expression"] for query in alarm.get("Metrics", []) if "Expression" in query]
    return [one["Fn::Sub"] if isinstance(one, dict) else one for one in found]


@rule
def metrics_insights_keeps_to_its_grammar(template: Template) -> Iterator[str]:
    """WHERE knows `=`, `!=` and `AND` only: no OR, no IN, no LIKE.

    cloudwatch-metrics-insights-querylanguage.html in CloudWatch's User Guide.
    """
    for name, alarm in resources(template, "AWS::CloudWatch::Alarm").items():
        for expression in _expressions(alarm):
            query = expression.strip()
            if query.upper().startswith("SELECT") and not _INSIGHTS.fullmatch(query):
                yield f"{name}: {query}"


@rule
def alarms_look_back_for_a_day_at_most(template: Template) -> Iterator[str]:
    """Period by EvaluationPeriods: 86,400 s below a period of an hour, 604,800 s from there on.

    PutMetricAlarm in CloudWatch's API Reference, `Period`. A period is 10, 20, 30 or a multiple
    of 60; Metrics Insights alarms look back for three hours at most.
    """
    for name, alarm in resources(template, "AWS::CloudWatch::Alarm").items():
        periods = {_period(alarm), *(_period(query) for query in alarm.get("Metrics", []))} - {None}
        for period in periods:
            assert period is not None
            looks_back = period * alarm["EvaluationPeriods"]
            insights = any(text.upper().startswith("SELECT") for text in _expressions(alarm))
            longest = 10_800 if insights else 86_400 if period < 3600 else 604_800
            if looks_back > longest or (period not in {10, 20, 30} and period % 60):
                yield f"{name} looks back for {looks_back} s in periods of {period} s"
        if alarm.get("DatapointsToAlarm", 1) > alarm["EvaluationPeriods"]:
            yield f"{name} waits for more data points than it looks at"


def _period(of: Json) -> int | None:
    period: int | None = of.get("Period", of.get("MetricStat", {}).get("Period"))
    return period


@rule
def metric_math_of_alarms_is_small(template: Template) -> Iterator[str]:
    """At most 20 queries, 10 of metrics and 10 expressions; one returns data; no SEARCH.

    MetricDataQuery in CloudWatch's API Reference; using-search-expressions.html in its User Guide:
    "you can't create an alarm based on the SEARCH expression".
    """
    for name, alarm in resources(template, "AWS::CloudWatch::Alarm").items():
        if "Metrics" not in alarm:
            continue
        queries = alarm["Metrics"]
        metrics = [query for query in queries if "MetricStat" in query]
        if len(queries) > 20 or len(metrics) > 10 or len(queries) - len(metrics) > 10:
            yield f"{name} has {len(metrics)} metrics and {len(queries) - len(metrics)} expressions"
        if [query.get("ReturnData", True) for query in queries].count(True) != 1:
            yield f"{name} does not return one series"
        ids = [query["Id"] for query in queries]
        if len(ids) != len(set(ids)) or not all(re.fullmatch("[a-z][a-zA-Z0-9_]*", i) for i in ids):
            yield f"{name} has ids that are no ids: {ids}"
        if any("SEARCH" in expression for expression in _expressions(alarm)):
            yield f"{name} searches"
        if {"Namespace", "MetricName", "Dimensions", "Period", "Statistic"} & alarm.keys():
            yield f"{name} has metrics, and one beside them"


@rule
def an_alarm_that_fills_looks_at_more_than_it_needs(template: Template) -> Iterator[str]:
    """FILL stands in for the newest minute, often late: an alarm on one of one sees nothing.

    using-metric-math.html in CloudWatch's User Guide, FILL: "work around this by using an M
    out of N alarm".
    """
    for name, alarm in resources(template, "AWS::CloudWatch::Alarm").items():
        needed = alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"])
        if (
            any("FILL(" in text for text in _expressions(alarm))
            and needed == alarm["EvaluationPeriods"]
        ):
            yield f"{name} needs {needed} of {needed}"


@rule
def dashboards_are_small(template: Template) -> Iterator[str]:
    """At most 500 metrics in a widget, 2,500 in a dashboard, 500 widgets; a grid of 24 columns.

    cloudwatch_limits.html and CloudWatch-Dashboard-Body-Structure.html.
    """
    for name, dashboard in resources(template, "AWS::CloudWatch::Dashboard").items():
        widgets = json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]
        counts = [len(widget["properties"].get("metrics", [])) for widget in widgets]
        if len(widgets) > 500 or max(counts) > 500 or sum(counts) > 2500:
            yield f"{name}: {len(widgets)} widgets with {counts} metrics"
        for widget in widgets:
            if not (0 <= widget["x"] < widget["x"] + widget["width"] <= 24):
                yield f"{name}: {widget['properties']['title']} is beside the grid"


# --- Lambda and IAM -------------------------------------------------------------------------------


@rule
def environments_fit(template: Template) -> Iterator[str]:
    """A function's environment has at most 4 KB, and no name that Lambda keeps for itself.

    gettingstarted-limits.html and configuration-envvars.html in Lambda's Developer Guide.
    """
    for name, function in resources(template, "AWS::Lambda::Function").items():
        variables = function["Environment"]["Variables"]
        most = sum(len(key) + size(template, value) for key, value in variables.items())
        if most > 4096:
            yield f"{name}'s environment may have {most} bytes"
        for key in variables:
            if key.startswith(("AWS_", "LAMBDA_", "_")) or not re.fullmatch(r"[A-Za-z]\w+", key):
                yield f"{name} sets {key}"


@rule
def functions_are_within_their_bounds(template: Template) -> Iterator[str]:
    """Timeout 1 to 900 s, 128 to 10,240 MB, five layers, a description of 256 characters.

    gettingstarted-limits.html in Lambda's Developer Guide; CreateFunction in its API Reference.
    """
    for name, function in resources(template, "AWS::Lambda::Function").items():
        if not 1 <= number(template, function["Timeout"]) <= 900:
            yield f"{name} has a timeout of {function['Timeout']}"
        if not 128 <= function["MemorySize"] <= 10_240:
            yield f"{name} has {function['MemorySize']} MB"
        if len(function.get("Layers", [])) > 5 or len(function.get("Description", "")) > 256:
            yield f"{name} has too many layers, or too long a description"


@rule
def roles_are_small(template: Template) -> Iterator[str]:
    """A role's inline policies have at most 10,240 characters together, its trust policy 2,048.

    reference_iam-quotas.html in IAM's User Guide.
    """
    for name, role in resources(template, "AWS::IAM::Role").items():
        inline = sum(size(template, one["PolicyDocument"]) for one in role.get("Policies", []))
        if inline > 10_240 or size(template, role["AssumeRolePolicyDocument"]) > 2048:
            yield f"{name} may have {inline} characters of policies"


# --- CloudFormation and what it keeps -------------------------------------------------------------


@rule
def tables_outlive_the_stack_but_not_a_failed_first_deploy(template: Template) -> Iterator[str]:
    """`Retain` leaves an orphan when the create that made it is rolled back.

    aws-attribute-deletionpolicy.html in CloudFormation's Template Reference, RetainExceptOnCreate.
    UpdateReplacePolicy does not know that word.
    """
    for name, table in template.resources("AWS::DynamoDB::Table").items():
        if table.get("DeletionPolicy") != "RetainExceptOnCreate":
            yield f"{name} has the DeletionPolicy {table.get('DeletionPolicy')}"
        if table.get("UpdateReplacePolicy") != "Retain":
            yield f"{name} has the UpdateReplacePolicy {table.get('UpdateReplacePolicy')}"


@rule
def no_parameter_replaces_what_holds_something(template: Template) -> Iterator[str]:
    """A property whose change means replacement: `createOnlyProperties` of the type's schema.

    CloudFormation's registry, as cfn-lint ships it; "Update requires: Replacement" in the Template
    Reference. A replaced table, queue or secret is empty, a replaced API has another address.
    """
    for type_ in STATEFUL:
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, type_).schema
        pointers = [
            *schema.get("createOnlyProperties", []),
            *schema.get("conditionalCreateOnlyProperties", []),
        ]
        fixed = {pointer.split("/")[2] for pointer in pointers}
        for name, resource in template.resources(type_).items():
            if "Condition" in resource:
                yield f"{name} comes and goes with {resource['Condition']}"
            for key in fixed & resource["Properties"].keys():
                value = resource["Properties"][key]
                if "Fn::If" in json.dumps(value) or mentions(value) & template.parameters.keys():
                    yield f"{name}.{key} depends on a parameter"


@rule
def indexes_come_one_at_a_time(template: Template) -> Iterator[str]:
    """UpdateTable creates or deletes one global secondary index at a time: two fail the update.

    GlobalSecondaryIndexUpdates of UpdateTable in DynamoDB's API Reference.
    """
    for name, table in resources(template, "AWS::DynamoDB::Table").items():
        indexes = {index["IndexName"] for index in table.get("GlobalSecondaryIndexes", [])}
        changed = indexes ^ DEPLOYED_INDEXES.get(name, set())
        if len(changed) > 1:
            yield f"{name} gets or loses {sorted(changed)} at once"


@rule
def tables_define_the_attributes_of_their_keys_only(template: Template) -> Iterator[str]:
    """CreateTable refuses a definition that no key uses, and a key without one.

    AttributeDefinitions of CreateTable in DynamoDB's API Reference.
    """
    for name, table in resources(template, "AWS::DynamoDB::Table").items():
        keys = [*table["KeySchema"]]
        for index in table.get("GlobalSecondaryIndexes", []):
            keys += index["KeySchema"]
            if len(index["Projection"].get("NonKeyAttributes", [])) > 100:
                yield f"{name}.{index['IndexName']} projects more than 100 attributes"
        defined = {one["AttributeName"] for one in table["AttributeDefinitions"]}
        if defined ^ {key["AttributeName"] for key in keys}:
            yield f"{name} defines {sorted(defined)}"


@rule
def the_template_fits(template: Template) -> Iterator[str]:
    """1 MB from S3, 500 resources, 200 parameters, 200 outputs, descriptions of 1,024 bytes.

    cloudformation-limits.html in CloudFormation's User Guide.
    """
    whole = template.transformed
    if len(json.dumps(whole)) > 1_000_000 or len(whole["Resources"]) > 500:
        yield f"{len(json.dumps(whole))} bytes, {len(whole['Resources'])} resources"
    if len(whole["Parameters"]) > 200 or len(whole["Outputs"]) > 200:
        yield f"{len(whole['Parameters'])} parameters, {len(whole['Outputs'])} outputs"
    for section in ("Parameters", "Outputs"):
        for name, entry in whole[section].items():
            if len(entry.get("Description", "")) > 1024:
                yield f"{name} has too long a description"


# --- a change that breaks each --------------------------------------------------------------------


def broken(template: Template, change: Change) -> Template:
    """Return a copy of a template with a change to it."""
    transformed, source = copy.deepcopy(template.transformed), copy.deepcopy(template.source)
    copied = Template(source, transformed, dict(template.parameters))
    change(transformed["Resources"])
    source["Parameters"] = transformed["Parameters"]
    return copied


def _set(path: str, value: Any) -> Change:
    """Return a change that sets one property, by its path with slashes."""

    def change(all_: Json) -> None:
        *way, last = path.split("/")
        node: Any = all_
        for step in way:
            node = node[int(step) if isinstance(node, list) else step]
        node[int(last) if isinstance(node, list) else last] = value

    return change


def _all_queues_in_one_policy(all_: Json) -> None:
    names = [name for name in all_ if all_[name]["Type"] == "AWS::SQS::QueuePolicy"]
    first, *others = (all_[name]["Properties"] for name in names)
    first["Queues"] += [queue for other in others for queue in other["Queues"]]
    statement = first["PolicyDocument"]["Statement"][0]
    statement["Resource"] = [{"Fn::GetAtt": [queue["Ref"], "Arn"]} for queue in first["Queues"]]
    for name in names[1:]:
        del all_[name]


def _two_policies(all_: Json) -> None:
    all_["AnotherPolicy"] = copy.deepcopy(all_["RequestsQueuePolicy"])


def _or(all_: Json) -> None:
    all_["FunctionErrorsAlarm"]["Properties"]["Metrics"] = [
        {
            "Id": "errors",
            "Period": 60,
            "Expression": 'SELECT SUM(Errors) FROM SCHEMA("AWS/Lambda", FunctionName)'
            " WHERE FunctionName = 'a' OR FunctionName = 'b'",
        }
    ]


def _eleven_metrics(all_: Json) -> None:
    queries = all_["FunctionErrorsAlarm"]["Properties"]["Metrics"]
    queries += [queries[-1] | {"Id": f"more{n}"} for n in range(10)]


def _wide_dashboard(all_: Json) -> None:
    body = all_["Dashboard"]["Properties"]["DashboardBody"]
    dashboard = json.loads(body["Fn::Sub"])
    dashboard["widgets"][0]["properties"]["metrics"] *= 200
    body["Fn::Sub"] = json.dumps(dashboard)


def _two_indexes(all_: Json) -> None:
    indexes = all_["LedgerTable"]["Properties"]["GlobalSecondaryIndexes"]
    indexes += [indexes[0] | {"IndexName": name} for name in ("one", "two")]


def _many_statements(all_: Json) -> None:
    statements = all_["RequestsQueuePolicy"]["Properties"]["PolicyDocument"]["Statement"]
    statements += [copy.deepcopy(statements[0]) for _ in range(20)]


def _much_to_do(all_: Json) -> None:
    policy = all_["SendNotificationRole"]["Properties"]["Policies"][0]["PolicyDocument"]
    policy["Statement"] *= 6


def _many_resources(all_: Json) -> None:
    all_ |= {f"Topic{n}": {"Type": "AWS::SNS::Topic", "Properties": {}} for n in range(500)}


def _three_readers(all_: Json) -> None:
    mapping = all_["PublishStatusEventsFunctionChanges"]
    all_ |= {f"Reader{n}": copy.deepcopy(mapping) for n in range(2)}


def _filter(pattern: Json) -> Change:
    return _set(f"{_STREAM}/FilterCriteria/Filters/0/Pattern", json.dumps(pattern))


_ALARM = "FunctionErrorsAlarm/Properties"
_STREAM = "PublishStatusEventsFunctionChanges/Properties"
_READER = "PublishStatusEventsRole/Properties/Policies/0/PolicyDocument/Statement"
_FUNCTION = "SendNotificationFunction/Properties"
BREAKS: dict[str, list[Change]] = {
    "one_resource_per_statement_of_a_queue": [_all_queues_in_one_policy],
    "one_policy_per_queue": [_two_policies, lambda all_: all_.pop("ReceiptsQueuePolicy")],
    "queue_policies_are_small": [
        _many_statements,
        _set(
            "RequestsQueuePolicy/Properties/PolicyDocument/Statement/0/Action",
            [f"sqs:{n}" for n in range(8)],
        ),
    ],
    "queues_are_within_their_bounds": [
        _set(
            "RequestsQueue/Properties/VisibilityTimeout",
            {"Fn::Sub": "${FunctionTimeoutSeconds}0000"},
        ),
        _set("RequestsQueue/Properties/RedrivePolicy/maxReceiveCount", 1001),
        _set("DeadLettersQueue/Properties/MessageRetentionPeriod", 1_209_601),
    ],
    "dead_letters_are_kept_for_as_long_as_their_source": [
        _set("DeadLettersQueue/Properties/MessageRetentionPeriod", 86_400)
    ],
    "nothing_comes_back_while_it_is_worked_on": [
        _set("RequestsQueue/Properties/VisibilityTimeout", {"Ref": "FunctionTimeoutSeconds"})
    ],
    "mappings_of_streams_are_within_their_bounds": [
        _set(f"{_STREAM}/BatchSize", 10_001),
        _set(f"{_STREAM}/MaximumRecordAgeInSeconds", 59),
        _set(f"{_STREAM}/MaximumRecordAgeInSeconds", 86_400),
        _set(f"{_STREAM}/StartingPosition", "AT_TIMESTAMP"),
        _set(f"{_STREAM}/ScalingConfig", {"MaximumConcurrency": 2}),
    ],
    "filters_of_mappings_are_patterns": [
        _set(f"{_STREAM}/FilterCriteria/Filters", [{"Pattern": '{"eventName": ["INSERT"]}'}] * 6),
        _filter({"eventName": ["x" * 4096]}),
        _filter({"dynamodb": {"NewImage": {"status": {"S": "sent"}}}}),
        _filter({"dynamodb": {"NewImage": {"status": {"S": []}}}}),
        _filter({"dynamodb": {"NewImage": {"generation": {"N": [{"numeric": [">", 1]}]}}}}),
    ],
    "streams_have_the_images_that_filters_look_at": [
        _set("LedgerTable/Properties/StreamSpecification/StreamViewType", "OLD_IMAGE"),
        lambda all_: all_["LedgerTable"]["Properties"].pop("StreamSpecification"),
    ],
    "a_stream_has_two_readers_at_most": [_three_readers],
    "who_reads_a_stream_may": [
        _set(f"{_READER}/0/Action", ["dynamodb:GetRecords"]),
        _set(f"{_READER}/0/Resource", {"Fn::GetAtt": ["LedgerTable", "Arn"]}),
        _set(f"{_READER}/1/Resource", {"Fn::GetAtt": ["LedgerTable", "StreamArn"]}),
        lambda all_: all_["PublishStatusEventsRole"]["Properties"]["Policies"][0]["PolicyDocument"][
            "Statement"
        ].pop(3),
    ],
    "metrics_insights_keeps_to_its_grammar": [_or],
    "alarms_look_back_for_a_day_at_most": [
        _set("OldestDeadLetterAlarm/Properties/EvaluationPeriods", 289),
        _set("OldestDeadLetterAlarm/Properties/Period", 90),
        _set(f"{_ALARM}/DatapointsToAlarm", 9),
    ],
    "metric_math_of_alarms_is_small": [
        _eleven_metrics,
        _set(f"{_ALARM}/Metrics/1/ReturnData", True),
        _set(f"{_ALARM}/Metrics/1/Id", "M1"),
        _set(f"{_ALARM}/Namespace", "AWS/Lambda"),
    ],
    "an_alarm_that_fills_looks_at_more_than_it_needs": [_set(f"{_ALARM}/DatapointsToAlarm", 3)],
    "dashboards_are_small": [_wide_dashboard],
    "environments_fit": [
        _set(f"{_FUNCTION}/Environment/Variables/MORE", {"Ref": "PublisherArns"}),
        _set(f"{_FUNCTION}/Environment/Variables/AWS_REGION", "x"),
    ],
    "functions_are_within_their_bounds": [_set(f"{_FUNCTION}/Timeout", 901)],
    "roles_are_small": [_much_to_do],
    "tables_outlive_the_stack_but_not_a_failed_first_deploy": [
        _set("LedgerTable/DeletionPolicy", "Retain"),
        _set("LedgerTable/UpdateReplacePolicy", "Delete"),
    ],
    "no_parameter_replaces_what_holds_something": [
        _set("LedgerTable/Properties/TableName", {"Fn::Sub": "${Release}-ledger"}),
        _set("RequestsQueue/Properties/QueueName", {"Ref": "Release"}),
        _set("BotsSecret/Condition", "HasKey"),
    ],
    "indexes_come_one_at_a_time": [_two_indexes],
    "tables_define_the_attributes_of_their_keys_only": [
        _set("IdentitiesTable/Properties/AttributeDefinitions", [])
    ],
    "the_template_fits": [_many_resources],
}
