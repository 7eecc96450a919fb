"""One file per policy family, and the protocol they all meet."""
