"""Position embeddings for other input sizes."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from afinar.errors import RequestError
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.position_embeddings import fit_position_embedding
from afinar.models.networks.weight_files import select_tensors


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("before", "after"), [(14, 2), (14, 24), (7, 3)])
def test_grid_is_resized_as_in_timm_and_class_tokens_are_kept(
    prefix: int, before: int, after: int
) -> None:
    torch.manual_seed(0)
    embedding = torch.randn(1, prefix + before**2, 8)
    shape = torch.Size((1, prefix + after**2, 8))
    fitted = fit_position_embedding("pos_embed", embedding, shape)
    assert torch.equal(fitted[:, :prefix], embedding[:, :prefix])
    torch.testing.assert_close(
        fitted, resample_abs_pos_embed(embedding, [after, after], num_prefix_tokens=prefix)
    )


def test_other_tensors_and_other_widths_are_unchanged() -> None:
    embedding = torch.randn(1, 5, 8)
    for name, shape in (("weight", (1, 10, 8)), ("pos_embed", (1, 10, 4)), ("pos_embed", (1, 8))):
        assert fit_position_embedding(name, embedding, torch.Size(shape)) is embedding


def test_weights_of_torchvisions_vit_fit_another_input_size() -> None:
    name = "encoder.pos_embedding"
    with torch.device("meta"):
        needed = build_backbone("vit_b_16", 64).state_dict()[name]
    assert needed.shape == (1, 17, 768)
    selected = select_tensors({name: torch.randn(1, 197, 768)}, {name: needed}, "file")
    assert selected[name].shape == needed.shape
    with pytest.raises(RequestError, match="does not fit this backbone"):
        select_tensors({name: torch.randn(1, 198, 768)}, {name: needed}, "file")
