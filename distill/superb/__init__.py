"""SUPERB: tasks that s3prl trains on the hidden states of a model of ours."""
