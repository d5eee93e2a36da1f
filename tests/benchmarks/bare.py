"""What any such function imports and makes before it can do anything; see `cold_start`."""

import boto3
import httpx
from aws_lambda_powertools.logging import Logger

logger = Logger(service="bare")
clients = [boto3.client(name) for name in ("dynamodb", "sqs", "secretsmanager", "events")]
http = httpx.Client()
