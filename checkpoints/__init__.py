"""Weights from outside: reading them safely, and naming them as our models do."""
