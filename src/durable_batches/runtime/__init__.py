"""Run one document: activities, workflows, checkpoints."""
