"""Drift of features: how many nearest neighbors of images are still those of the weights that a training began with."""

import torch
import torch.nn.functional as F


def nearest_neighbors(features: torch.Tensor, k: int) -> torch.Tensor:
    """Find the nearest neighbors of each image among the others, by cosine similarity of centered features.

    Args:
        features: Features of N images, (N, D).
        k: Number of neighbors; all others if there are fewer.

    Returns:
        Row numbers, int64 (N, k).

    Raises:
        ValueError: If there are fewer than two images, or k is below 1.
    """
    if features.ndim != 2 or len(features) < 2 or k < 1:
        raise ValueError(f"features of shape {tuple(features.shape)} and k={k}. Give (N, D) with N > 1, and k > 0.")
    vectors = F.normalize(features.double() - features.double().mean(dim=0), dim=1)
    similarity = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    return similarity.topk(min(k, len(features) - 1), dim=1).indices


def neighbor_agreement(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean share of common neighbors of each image: 1 for the same neighbors, about k / (N - 1) for random ones.

    Args:
        first: Result of `nearest_neighbors`, (N, k).
        second: The same of other features of the same images.

    Returns:
        The share, 0 to 1.

    Raises:
        ValueError: If the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"Neighbors have shapes {tuple(first.shape)} and {tuple(second.shape)}. Give the same images.")
    return float((first[:, :, None] == second[:, None, :]).any(dim=2).double().mean())
