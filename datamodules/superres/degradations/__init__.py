"""What is done to clean images so that a model can learn to undo it: one file per kind."""
