"""Rewrites traced programs of stacked replicas into faster forms; results are equal up to rounding."""
