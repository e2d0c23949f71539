"""Command line: layers of configuration, checks, verbs and help."""
