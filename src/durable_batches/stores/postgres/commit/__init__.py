"""A worker's commits: lock, load, plan, write."""
