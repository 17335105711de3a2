"""Values to bytes and back, by annotation; identity of inputs."""
