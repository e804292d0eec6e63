"""Checkpoints, run directories and model files."""
