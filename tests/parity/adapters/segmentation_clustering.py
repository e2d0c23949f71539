"""Adapter of token clustering, from official hyper-parameters to our outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from backbones.vision.token_clustering import (
    cluster_tokens,
    home_cells,
    initial_centres,
    nearest_centres,
    reconstruct_tokens,
)
from tests.parity.case import Case


def token_clustering(case: Case) -> dict[str, Tensor]:
    official, tokens = case.meta, case.inputs["tokens"].permute(0, 2, 3, 1)
    rows, columns = official["cluster_grid"]
    grid, size = (rows, columns), (tokens.shape[1], tokens.shape[2])
    temperature = official["temperature"]
    flat = tokens.flatten(1, 2)
    with torch.no_grad():
        centres = cluster_tokens(
            tokens, grid, window=official["window"], iterations=official["iterations"], temperature=temperature
        )
        homes = home_cells(size, grid).flatten()
        return {
            "initial_clusters": initial_centres(tokens, grid).flatten(1, 2).mT,
            "initial_assignment": homes.float().expand(len(tokens), -1),
            "clusters": centres,
            "hard_labels": nearest_centres(flat, centres),
            "reconstructed": reconstruct_tokens(
                flat,
                centres,
                case.inputs["refined_clusters"],
                temperature=temperature,
                nearest=official["k"],
                norm=official.get("norm", "l2"),
            ),
        }
