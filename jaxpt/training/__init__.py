"""`fit`: the host's loop between dispatches, and the monitors and recorders that it calls."""
