"""One file a policy family, and the protocol they all meet."""
