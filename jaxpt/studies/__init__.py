"""Whole experiments in one call: diffusion of weights, sampling, replay of a path."""
