"""Batches in virtual time, and crashes on demand."""
