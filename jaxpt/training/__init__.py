"""`fit`: the loop between dispatches, and all that watches it."""
