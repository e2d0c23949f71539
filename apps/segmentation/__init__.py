"""Semantic and panoptic segmentation."""
