"""Super-resolution and restoration of images."""
