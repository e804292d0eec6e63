"""Recorders: what writes a run's rows down while it goes on."""
