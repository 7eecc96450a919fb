"""robostack."""
