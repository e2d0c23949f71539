"""Trunk: attention core, sequence mixers and vision backbones in plain torch."""
