"""Which rules pay: tasks, arms with equal compute, and scores with intervals."""
