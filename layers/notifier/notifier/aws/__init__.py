"""Everything that knows AWS: the tables, the queues, the secret. Imports boto3; never BLiP."""
