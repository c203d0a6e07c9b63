"""The nearest orthogonal matrix, roughly: five steps of a Newton-Schulz iteration.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; Bernstein & Newhouse 2024,
arXiv:2409.20325.
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
TINY = 1e-7  # added to the norm that a matrix is divided by


def orthogonalised(matrix: Tensor, iterations: int) -> Tensor:
    """U S' V^T for a matrix U S V^T, its singular values S' roughly between 0.7 and 1.2.

    Args:
        matrix: [R, C]; products are made in its dtype.
        iterations: of the polynomial a s + b s^3 + c s^5 over the singular values.

    Returns:
        [R, C], the same dtype.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / (x.norm() + TINY)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def operations(rows: int, columns: int, iterations: int) -> float:
    """Floating-point operations of :func:`orthogonalised`."""
    short, long = sorted((rows, columns))
    return iterations * (4.0 * short**2 * long + 2.0 * short**3)
