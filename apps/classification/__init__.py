"""Classification of images, and the trunk's own proof: every backbone with its head on the same data."""
