"""What every app shares: command line, runs, checkpoints, reports, export. Never imports an app."""
