"""The command `durable-batches demo`."""
