"""Many documents: the worker, its journal and scheduler, and the orchestrator that users hold."""
