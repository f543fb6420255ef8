"""Variants of the VQ recipe that were tried and did not become the default; recipes.py measures them."""

from __future__ import annotations

import torch
from torch import Tensor

from mgqe import ops
from mgqe.codec.equations import codebook_loss, commitment_loss, nearest_codes, straight_through
from mgqe.codec.kmeans import start_codebooks
from mgqe.nn.quantizers.vq import VQQuantizer


class TaskGradient(VQQuantizer):
    """The task's gradient moves the centroids as well as the rows."""

    def forward(self, rows: Tensor, groups: list[int], counts: Tensor) -> tuple[Tensor, Tensor | None]:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(rows, groups, counts)
        decoded = self.decode_tiers(rows, groups)
        loss = codebook_loss(rows, decoded, counts) + self.commitment * commitment_loss(rows, decoded, counts)
        return straight_through(rows, decoded), loss


class EMACentroids(VQQuantizer):
    """Centroids are moving averages of the rows that choose them (decay 0.99); only the commitment is a loss."""

    decay = 0.99

    def forward(self, rows: Tensor, groups: list[int], counts: Tensor) -> tuple[Tensor, Tensor | None]:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(rows, groups, counts)
        with torch.no_grad():
            decoded = self.decode_tiers(rows, groups)
            self._average(rows.detach(), groups)
        return straight_through(rows, decoded), self.commitment * commitment_loss(rows, decoded, counts)

    def _average(self, rows: Tensor, groups: list[int]) -> None:
        if not hasattr(self, "_sums"):
            self._sums = [book.detach().clone() for book in self.codebooks]
            self._counts = [torch.ones(book.shape[:2]) for book in self.codebooks]
        parts = torch.split(rows, groups)
        for g, (mine, number) in enumerate(zip(parts, self.capacity.codebook_of, strict=True)):
            sums, uses = ops.scatter(mine, self.codes(mine, g), None, *self.codebooks[number].shape)
            self._sums[number].mul_(self.decay).add_(sums, alpha=1 - self.decay)
            self._counts[number].mul_(self.decay).add_(uses, alpha=1 - self.decay)
        for book, sums, uses in zip(self.codebooks, self._sums, self._counts, strict=True):
            alive = (uses > 1e-3).unsqueeze(-1)
            book.data.copy_(torch.where(alive, sums / uses.clamp(min=1e-3).unsqueeze(-1), book.data))


class RotationTrick(VQQuantizer):
    """The gradient passes through the rotation and scaling that take a row to its centroid (Fifty et al., 2024)."""

    def forward(self, rows: Tensor, groups: list[int], counts: Tensor) -> tuple[Tensor, Tensor | None]:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(rows, groups, counts)
        decoded = self.decode_tiers(rows, groups)
        loss = codebook_loss(rows, decoded, counts) + self.commitment * commitment_loss(rows, decoded, counts)
        subspaces = self.capacity.num_subspaces[0]
        q, c = rows.unflatten(1, (subspaces, -1)), decoded.detach().unflatten(1, (subspaces, -1))
        scale = c.norm(dim=-1, keepdim=True) / q.detach().norm(dim=-1, keepdim=True).clamp(min=1e-8)
        u, v = torch.nn.functional.normalize(q.detach(), dim=-1), torch.nn.functional.normalize(c, dim=-1)
        mirror = torch.nn.functional.normalize(u + v, dim=-1)
        turned = q - 2 * (q * mirror).sum(-1, keepdim=True) * mirror + 2 * (q * u).sum(-1, keepdim=True) * v
        return (turned * scale).flatten(1), loss


class Annealed(VQQuantizer):
    """For the first passes a row is a mixture of itself and its centroid, the centroid's share growing to one."""

    passes = 250

    def forward(self, rows: Tensor, groups: list[int], counts: Tensor) -> tuple[Tensor, Tensor | None]:
        out, loss = super().forward(rows, groups, counts)
        if loss is not None:
            self._pass = getattr(self, "_pass", 0) + 1
            share = min(1.0, self._pass / self.passes)
            out = out + (1 - share) * (rows - out).detach()
        return out, loss


class SoftAssignment(VQQuantizer):
    """softmax(-||q - C_k||^2 / tau) mixtures of centroids, tau falling to 0 over the first passes; then hard."""

    passes = 120

    def forward(self, rows: Tensor, groups: list[int], counts: Tensor) -> tuple[Tensor, Tensor | None]:
        out, loss = super().forward(rows, groups, counts)
        if loss is None:
            return out, loss
        self._pass = getattr(self, "_pass", 0) + 1
        if self._pass >= self.passes:
            return out, loss
        book = self.values(0).detach()
        mixed = []
        for mine, centroids in zip(torch.split(rows, groups), self.capacity.num_centroids, strict=True):
            part = book[:, :centroids]
            q = mine.unflatten(1, (part.shape[0], -1))
            distance = (part.square().sum(-1) - 2 * torch.einsum("njs,jks->njk", q, part)) + q.square().sum(-1, True)
            width = distance.detach().amin(-1).mean() * (1 - self._pass / self.passes) + 1e-8
            mixed.append(torch.einsum("njk,jks->njs", torch.softmax(-distance / width, -1), part).flatten(1))
        return torch.cat(mixed), loss


class EqualWeights(VQQuantizer):
    """Every distinct id of a batch weighs the same in the losses, however often it comes."""

    def forward(self, rows: Tensor, groups: list[int], counts: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().forward(rows, groups, counts.clamp(max=1))


class NoRevival(VQQuantizer):
    """Dead centroids stay dead."""

    def revive(self, rows, generator) -> int:  # type: ignore[no-untyped-def]
        return 0


class RowsStart(VQQuantizer):
    """Centroids start as copies of random rows instead of by k-means."""

    @torch.no_grad()
    def start(self, rows, generator, effort=None) -> None:  # type: ignore[no-untyped-def]
        from mgqe.codec.kmeans import draw_pieces

        for number, book in enumerate(self.codebooks):
            near = torch.cat([rows[g] for g, used in enumerate(self.capacity.codebook_of) if used == number])
            pieces = near.unflatten(1, (-1, book.shape[-1]))
            book.copy_(draw_pieces(pieces, book.shape[0], book.shape[1], generator))


class OneFit(VQQuantizer):
    """One k-means over all rows instead of nested ones; each tier then uses the first centroids."""

    @torch.no_grad()
    def start(self, rows, generator, effort=None) -> None:  # type: ignore[no-untyped-def]
        from mgqe.codec.kmeans import kmeans

        for number, book in enumerate(self.codebooks):
            parts = [
                (rows[g], self.capacity.num_subspaces[g])
                for g, used in enumerate(self.capacity.codebook_of)
                if used == number
            ]
            book.copy_(kmeans(parts, book.new_empty(book.shape[0], 0, book.shape[2]), book.shape[1], generator))


class Rotated(VQQuantizer):
    """Rows are rotated before they are quantised and back after (OPQ, Ge et al., 2013); d * d more numbers are kept."""

    iterations = 10

    @torch.no_grad()
    def start(self, rows, generator, effort=None) -> None:  # type: ignore[no-untyped-def]
        everything = torch.cat(list(rows))
        self.rotation = torch.eye(everything.shape[1])
        for _ in range(self.iterations):
            turned = [part @ self.rotation for part in rows]
            for parameter, book in zip(self.codebooks, start_codebooks(turned, self.capacity, generator), strict=True):
                parameter.copy_(book)
            decoded = torch.cat(
                [
                    ops.gather(self._near(part, g), self.values(self.capacity.codebook_of[g]))
                    for g, part in enumerate(turned)
                ]
            )
            left, _, right = torch.linalg.svd(everything.T @ decoded)
            self.rotation = left @ right
        for parameter, book in zip(
            self.codebooks,
            start_codebooks([part @ self.rotation for part in rows], self.capacity, generator),
            strict=True,
        ):
            parameter.copy_(book)

    def _near(self, turned: Tensor, tier: int) -> Tensor:
        book = self.values(self.capacity.codebook_of[tier]).detach()
        return nearest_codes(turned, book, self.capacity.num_subspaces[tier], self.capacity.num_centroids[tier])

    def revive(self, rows, generator) -> int:  # type: ignore[no-untyped-def]
        return (
            0 if not hasattr(self, "rotation") else super().revive([part @ self.rotation for part in rows], generator)
        )

    def forward(self, rows: Tensor, groups: list[int], counts: Tensor) -> tuple[Tensor, Tensor | None]:
        out, loss = super().forward(rows @ self.rotation, groups, counts)
        return out @ self.rotation.T, loss
