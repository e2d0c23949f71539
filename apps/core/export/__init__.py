"""Trained models as files for other runtimes, checked number by number against the model."""
