"""From a model and a loss to a `Problem`: NNX, Linen, plain energies; their layers, losses, noise and scores."""
