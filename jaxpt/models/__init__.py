"""Builds a `Problem` from a model and a loss (NNX, Linen or a bare energy); layers, losses, noise and scores."""
