"""The basic types: problems, ladders, data, states, and checks of plain arguments. Imports no other room."""

__version__ = "0.1.0"
