"""Rewrites traced programs of stacked replicas into forms that a device runs faster; the numbers stay."""
