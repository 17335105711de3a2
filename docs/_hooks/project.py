"""Show the version beside the link to the repository."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig

from durable_batches.version import VERSION


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the link in the header."""
    config.repo_name = f"durable-batches {VERSION}"
    return config
