"""Trained modules at work: loading, and prediction on files."""
