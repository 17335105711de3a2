"""`environment(workflow)`: a workflow's batches in virtual time, and crashes on demand."""

from __future__ import annotations

__all__ = ["Environment", "StoreMaker", "environment"]
