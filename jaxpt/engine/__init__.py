"""The step of one replica, the period of all, and the `Engine` that makes one program of them."""
