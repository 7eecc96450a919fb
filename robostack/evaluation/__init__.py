"""Rollouts in simulation, what is counted in them, and the page that reports it."""
