"""Batches shown on a terminal: lines, or bars with rich."""
