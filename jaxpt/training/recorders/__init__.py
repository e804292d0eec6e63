"""Recorders: objects that write a run's rows during the run."""
