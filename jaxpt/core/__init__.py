"""The nouns: types, ladders, data, states, and the checks of plain arguments. Imports nothing else of the package."""

__version__ = "0.1.0"
