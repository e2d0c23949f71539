"""Heads of segmentation on any backbone, and what they share."""
