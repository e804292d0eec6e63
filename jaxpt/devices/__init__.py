"""Where a run's replicas are placed, and how they are executed there."""
