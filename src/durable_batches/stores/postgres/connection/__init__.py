"""Connections to a Postgres server: settings, threads, errors, schema."""
