"""The history checker: what a store holds, held against the log of what happened."""
