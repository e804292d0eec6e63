"""The placement of a run's replicas on devices, and their execution there."""
