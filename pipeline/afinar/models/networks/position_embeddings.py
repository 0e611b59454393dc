"""Position embeddings of vision transformers, for inputs of other sizes than in pretraining."""

from __future__ import annotations

import logging
import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

_NAMES: Final = ("pos_embed", "pos_embedding")  # in timm, in torchvision


def fit_position_embedding(name: str, embedding: Tensor, shape: torch.Size) -> Tensor:
    """Return a position embedding interpolated to `shape`; other tensors unchanged.

    float [1, tokens, width] → [1, other tokens, width]. The embeddings of the patches are resized
    as a square grid, bicubic; those of the class token and of other tokens before the patches are
    kept (Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.2; bicubic as in Touvron et al. 2021,
    arXiv 2012.12877; antialiased as in timm's `resample_abs_pos_embed`). Example: 224 px and
    patches of 16 px have 1 + 14 x 14 tokens, 384 px have 1 + 24 x 24.

    A tensor that is no such grid is returned unchanged, and then does not fit.
    """
    is_embedding = name.rpartition(".")[2] in _NAMES and embedding.ndim == len(shape) == 3
    if not is_embedding or embedding.shape == shape or embedding.shape[::2] != shape[::2]:
        return embedding
    prefix = _prefix_tokens(embedding.shape[1], shape[1])
    if prefix is None:
        return embedding

    before, after = (math.isqrt(tokens - prefix) for tokens in (embedding.shape[1], shape[1]))
    logger.info(
        f"note: the position embeddings of {before} x {before} patches are interpolated to "
        f"{after} x {after}"
    )
    grid = embedding[:, prefix:].float().reshape(1, before, before, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", antialias=True)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(embedding.dtype)
    return torch.cat([embedding[:, :prefix], patches], dim=1)


def _prefix_tokens(*counts: int) -> int | None:
    """Return the number of tokens before square grids of patches, None if there is none.

    It is the smallest for which the rest of each count is a square. Example: of 197 and 577 tokens,
    1 is before 14 x 14 and 24 x 24 patches.
    """
    for prefix in range(min(counts)):
        rests = [count - prefix for count in counts]
        if all(math.isqrt(rest) ** 2 == rest for rest in rests):
            return prefix
    return None
