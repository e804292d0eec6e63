"""Whole experiments in a call: diffusion of weights, sampling, replay of a path."""
