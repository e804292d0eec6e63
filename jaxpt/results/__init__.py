"""What a run came to: scores, ensembles, pictures, reports."""
