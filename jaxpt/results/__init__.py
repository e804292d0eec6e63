"""The results of a run: scores, ensembles, pictures, reports."""
