"""Encode values by annotation, decode them, and digest inputs."""
