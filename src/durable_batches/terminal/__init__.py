"""The progress of a batch on a terminal: as lines, or as bars with rich."""
