"""What happens around the steps of a run: writing checkpoints, stopping, guarding, timing."""
