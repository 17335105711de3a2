"""Take the addresses of the site and of the repository, and the version, from the package: each has one place."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig

from durable_batches.version import DOCS_URL, REPOSITORY_URL, VERSION


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set what mkdocs.yml leaves out."""
    config.site_url = DOCS_URL
    config.repo_url = REPOSITORY_URL
    config.repo_name = f"durable-batches {VERSION}"
    return config
