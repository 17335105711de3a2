"""Connections to a Postgres server: settings, sessions, errors, the thread they live on, and the schema."""
