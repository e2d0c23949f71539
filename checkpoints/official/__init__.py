"""Key maps from official checkpoints to our models, one file per task."""
