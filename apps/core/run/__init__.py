"""Runs: the folder they live in, the training loop around them, and the verbs."""
