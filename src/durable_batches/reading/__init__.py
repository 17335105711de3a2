"""Read and control batches: no worker, no workflow code."""
