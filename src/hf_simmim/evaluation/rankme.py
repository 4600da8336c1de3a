"""RankMe: how many dimensions features use, measured without labels, and the singular values that it is made of."""

import torch

# Added to each share, as in the paper, so that its logarithm is finite.
EPSILON = 1e-7


def rankme(features: torch.Tensor) -> float:
    """Effective rank of features: the exponential of the entropy of their normalized singular values.

    With singular values s_k of the matrix of features and shares p_k = s_k / sum(s) + 1e-7, it is
    exp(-sum(p_k log p_k)): about 1 if all images have the same features up to a factor, and the smaller of N and D if
    the features fill all dimensions alike. The features are not centered, as in the paper. It compares checkpoints of
    one training, or trainings of encoders with the same D on the same images; use it where there are no labels.

    Args:
        features: Features of N images, of shape (N, D); N should exceed D, because the rank is at most N.

    Returns:
        The effective rank, from 1 to min(N, D); NaN if a feature is not finite, or all are zero.

    Raises:
        ValueError: If the features have another shape.

    Source: equations 1 and 2 of RankMe (Garrido et al., arXiv 2210.02885), after Roy and Vetterli, "The effective rank:
    a measure of effective dimensionality" (2007).
    """
    return effective_rank(singular_values(features))


def singular_values(features: torch.Tensor) -> torch.Tensor:
    """Singular values of features that are not centered.

    Args:
        features: Features of N images, of shape (N, D).

    Returns:
        float64 tensor (min(N, D),) in decreasing order; NaN if a feature is not finite.

    Raises:
        ValueError: If the features have another shape.
    """
    if features.ndim != 2 or not features.numel():
        raise ValueError(f"Features have shape {tuple(features.shape)}. Give one row for each image, (N, D).")
    features = features.detach().double()
    if not features.isfinite().all():
        return features.new_full((min(features.shape),), torch.nan)
    return torch.linalg.svdvals(features)


def effective_rank(values: torch.Tensor) -> float:
    """RankMe of singular values, see `rankme`; NaN if they are not finite, or all zero."""
    if not values.isfinite().all() or not values.any():
        return float("nan")
    shares = values / values.sum() + EPSILON
    return float((-(shares * shares.log()).sum()).exp())
