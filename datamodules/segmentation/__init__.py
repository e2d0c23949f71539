"""Images with a class, or a segment, for every pixel."""
