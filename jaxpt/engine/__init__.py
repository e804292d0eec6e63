"""The training step of one replica, the period of all replicas, and the `Engine` that compiles both as one program."""
