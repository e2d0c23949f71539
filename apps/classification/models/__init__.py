"""Models of the classification app, and their options."""
