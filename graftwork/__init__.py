"""The ground every part stands on: errors, names and components. Standard library only."""

__version__ = "0.1.0"
