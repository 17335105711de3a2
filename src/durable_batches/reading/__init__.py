"""What looks at batches: no worker, no workflow code."""
