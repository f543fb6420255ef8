"""The papers' equations as pure tensor functions.

DPQ: Chen et al., ICML'20, arXiv 1908.09756. MGQE: Kang et al., WWW'20, arXiv 2002.08530.
Notation: n rows of d dimensions, D subspaces of s = d / D, K centroids per subspace. A codebook is stored as
(Dc, Kc, sc): Dc = D subspaces, or 1 where all subspaces share one, or a multiple of D where a tier reads
several neighbouring subspaces with one code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Union

import torch
from torch import Tensor

from mgqe import ops

# Which tier each row of a batch is in: the sizes of the tiers, where their rows lie one tier after another; else each
# row's tier (u,).
Groups = Union[Sequence[int], Tensor]  # noqa: UP007  Evaluated on import, which Python 3.10's | does not do here.


def tier_codebook(codebook: Tensor, num_subspaces: int, num_centroids: int) -> Tensor:
    """The centroids that a tier of D_g subspaces and K_g centroids chooses among.

    Args:
        codebook: (Dc, Kc, sc), whole.
        num_subspaces: D_g; equals Dc, or divides it (one code then picks the same index in Dc / D_g
            neighbouring subspaces), or Dc is 1 (one codebook for all subspaces).
        num_centroids: K_g <= Kc; a tier uses the first K_g.

    Returns:
        (D_g, K_g, s_g) with s_g = sc * max(1, Dc / D_g); a view where that is possible.
    """
    first = codebook[:, :num_centroids]
    pieces, _, width = codebook.shape
    if pieces == num_subspaces:
        return first
    if pieces == 1:
        return first.expand(num_subspaces, -1, -1)
    per_code = pieces // num_subspaces
    grouped = first.reshape(num_subspaces, per_code, num_centroids, width)
    return grouped.transpose(1, 2).reshape(num_subspaces, num_centroids, per_code * width)


def nearest_codes(rows: Tensor, codebook: Tensor, num_subspaces: int, num_centroids: int) -> Tensor:
    """DPQ-VQ: code_j = argmin_k ||q_j - C_jk||^2 over the first K_g centroids (DPQ eq. 5, MGQE eq. 5).

    Args:
        rows: (n, d) float32.
        codebook: (Dc, Kc, sc) float32.

    Returns:
        (n, D_g) int32; the lowest index on ties.
    """
    return ops.assign(rows, tier_codebook(codebook, num_subspaces, num_centroids).contiguous(), None)


def straight_through(rows: Tensor, quantized: Tensor) -> Tensor:
    """Exactly ``quantized`` forward; backward the gradient goes to ``rows`` unchanged, and to ``quantized``.

    Written as c + (q - sg(q)) rather than q + sg(c - q), so that the forward value is c to the last bit and
    NaN rows give NaN. Detach ``quantized`` for the papers' estimator, e = q - sg(q - c).
    """
    return quantized + (rows - rows.detach())


def commitment_loss(rows: Tensor, quantized: Tensor, counts: Tensor) -> Tensor:
    """Mean over ids and dimensions of ||q - sg(c)||^2, each distinct id weighted by its count in the batch.

    Args:
        rows, quantized: (u, d), one row per distinct id.
        counts: (u,) how often each id occurs.
    """
    weights = counts.to(rows.dtype) / (counts.sum().clamp(min=1) * rows.shape[-1])
    return ((rows - quantized.detach()).square().sum(-1) * weights).sum()


def codebook_loss(rows: Tensor, quantized: Tensor, counts: Tensor) -> Tensor:
    """Mean of ||c - sg(q)||^2, which moves the centroids that were chosen towards their rows (DPQ eq. 8)."""
    return commitment_loss(quantized, rows, counts)


def responses(rows: Tensor, keys: Tensor) -> Tensor:
    """DPQ-SX: r_jk = <q_j, K_jk>.

    Args:
        rows: (n, D * s).
        keys: (D, K, s).

    Returns:
        (n, D, K).
    """
    subspaces, _, width = keys.shape
    return torch.einsum("njs,jks->njk", rows.reshape(-1, subspaces, width), keys)


def normalize_responses(scores: Tensor, mean: Tensor, variance: Tensor, eps: float = 1e-5) -> Tensor:
    """Batch normalisation without scale and shift, statistics per subspace and centroid: (n, D, K) -> (n, D, K)."""
    return (scores - mean) * torch.rsqrt(variance + eps)


def fold_normalization(keys: Tensor, mean: Tensor, variance: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Fold the batch norm of SX into the keys, so that codes need neither statistics nor a softmax.

    argmax_k (<q, K_k> - m_k) / sd_k = argmin_k m_k / sd_k - <q, K_k / sd_k>.

    Returns:
        keys (D, K, s) and bias (D, K) for ``ops.assign``.
    """
    scale = torch.rsqrt(variance + eps)
    return keys * scale.unsqueeze(-1), mean * scale


def soft_to_hard(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """DPQ-SX: w = p - sg(p - onehot(code)) with p = softmax(r / tau): hard forward, soft backward (DPQ eq. 3).

    Args:
        scores: (n, D, K).
        codes: (n, D) the chosen centroids.

    Returns:
        (n, D, K) weights for the values.
    """
    soft = torch.softmax(scores / temperature, dim=-1)
    hard = torch.zeros_like(soft).scatter_(-1, codes.long().unsqueeze(-1), 1.0)
    return hard + (soft - soft.detach())


def mix_values(weights: Tensor, values: Tensor) -> Tensor:
    """e_j = sum_k w_jk V_jk: (n, D, K) and (D, K, s) -> (n, D * s)."""
    return torch.einsum("njk,jks->njs", weights, values).flatten(1)


def int8_scales(codebook: Tensor) -> Tensor:
    """Of int8 centroids, (Dc, 1, 1): max |centroid| / 127 of each piece; 1 where all are zeros."""
    return scales_of(codebook.abs().amax(dim=(1, 2), keepdim=True))


def scales_of(peaks: Tensor) -> Tensor:
    """int8 scales of numbers whose largest sizes are these: peak / 127; 1 where all are zeros."""
    scales = peaks / 127
    # The quotient of the largest float32 is rounded up, and 127 times that is infinite.
    scales = torch.where((scales * 127).isfinite(), scales, torch.nextafter(scales, torch.zeros_like(scales)))
    return torch.where(scales > 0, scales, 1.0)


def in_int8_steps(values: Tensor, scales: Tensor) -> Tensor:
    """How many scales each number is, a whole number from -127 to 127, half to even."""
    return (values / scales).round().clamp(-127, 127)


def round_centroids(
    codebook: Tensor, centroid_dtype: str, scales_of_book: Callable[[Tensor], Tensor] = int8_scales
) -> Tensor:
    """Centroids as a frozen table of ``centroid_dtype`` will decode them: (Dc, Kc, sc) -> the same shape.

    The gradient passes straight through the rounding, so that training sees the values that look-ups will return.

    ``scales_of_book``: codebook -> its int8 scales, which must broadcast to it; of other shapes than (Dc, Kc, sc).
    """
    if centroid_dtype == "float32":
        return codebook
    values = codebook.detach()
    if centroid_dtype == "float16":
        rounded = values.to(torch.float16).to(values.dtype)
    else:
        scales = scales_of_book(values)
        rounded = in_int8_steps(values, scales) * scales
    return rounded + (codebook - values)
