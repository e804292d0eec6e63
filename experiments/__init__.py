"""The experiments: one readable file each, over shared networks, data sets and one runner."""
