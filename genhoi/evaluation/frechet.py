"""How far apart two sets of features are: the Fréchet distance of their Gaussians."""

from __future__ import annotations

from torch import Tensor, linalg

__all__ = ["frechet_distance", "frechet_of_features"]


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Give the squared Fréchet distance of two Gaussians:

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Args:
        mean_a, mean_b: float64 [D].
        cov_a, cov_b: float64 [D, D], symmetric, no negative eigenvalue; singular ones are legal.

    Raises:
        ValueError: shapes that do not belong together.
    """
    size = mean_a.shape[0] if mean_a.ndim == 1 else -1
    means = {"mean_a": mean_a, "mean_b": mean_b}
    covariances = {"cov_a": cov_a, "cov_b": cov_b}
    for name, got in (means | covariances).items():
        want = (size,) if name in means else (size, size)
        if tuple(got.shape) != want:
            raise ValueError(f"{name}: got {tuple(got.shape)}, want {'[D]' if size < 0 else want}")
    values, vectors = linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # C_a C_b has the eigenvalues of this symmetric product.
    middle = linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * middle
    return max(0.0, float(distance))


def frechet_of_features(a: Tensor, b: Tensor) -> float:
    """Give the `frechet_distance` of two sets of features, taken for Gaussians.

    Each has the mean and covariance of its set.

    Args:
        a: floating point [N, D], N at least 2.
        b: floating point [M, D], M at least 2.

    Raises:
        ValueError: another shape, or fewer rows: one sample has no covariance.
    """
    for name, got in (("a", a), ("b", b)):
        if got.ndim != 2 or got.shape[0] < 2 or got.shape[1] != a.shape[-1]:
            raise ValueError(f"{name}: got {tuple(got.shape)}, want [at least 2, D], D of both")
    a, b = a.double(), b.double()
    size = a.shape[1]
    return frechet_distance(
        a.mean(dim=0), a.T.cov().reshape(size, size), b.mean(dim=0), b.T.cov().reshape(size, size)
    )
