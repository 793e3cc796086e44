"""Transformers for the benchmarks, in plain torch: one that classifies images, one that continues texts. Random weights.

Shape legend: B samples, L positions, H heads, D width of a head, W width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Self-attention by torch's scaled dot-product attention, which picks the fastest kernel that a device has."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.inwards, self.outwards = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, states_BLW: Tensor) -> Tensor:
        """States to what they attend to."""
        asked, known, told = (
            self.inwards(states_BLW).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed_BHLD = functional.scaled_dot_product_attention(asked, known, told, is_causal=self.causal)
        return torch.as_tensor(self.outwards(mixed_BHLD.transpose(1, 2).flatten(2)))


class Layer(nn.Module):
    """Attention and a hidden layer four times as wide, each behind a normalisation and beside a shortcut."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads, causal))
        hidden = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.hidden = nn.Sequential(nn.LayerNorm(width), *hidden)

    def forward(self, states_BLW: Tensor) -> Tensor:
        """States to states."""
        states_BLW = states_BLW + self.attention(states_BLW)
        return torch.as_tensor(states_BLW + self.hidden(states_BLW))


class VisionTransformer(nn.Module):
    """Images (B, 3, side, side) to logits: patches, layers, the mean of their states, a linear head."""

    def __init__(self, side: int, patch: int, width: int, layers: int, heads: int, classes: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.places = nn.Parameter(torch.zeros(1, (side // patch) ** 2, width))
        self.layers = nn.Sequential(*(Layer(width, heads, causal=False) for _ in range(layers)), nn.LayerNorm(width))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        states_BLW = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return torch.as_tensor(self.head(self.layers(states_BLW).mean(dim=1)))


class LanguageModel(nn.Module):
    """Token ids (B, L) to the logits (B, L, vocabulary) of each next token: a causal transformer."""

    def __init__(self, vocabulary: int, tokens: int, width: int, layers: int, heads: int):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.zeros(1, tokens, width))
        self.layers = nn.Sequential(*(Layer(width, heads, causal=True) for _ in range(layers)), nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits; ids may be floats of whole values, as all samples become on their way to a network."""
        states_BLW = self.words(ids.to(torch.int64)) + self.places
        return torch.as_tensor(self.head(self.layers(states_BLW)))


def made_on(device: torch.device, dtype: torch.dtype, make: Callable[[], nn.Module]) -> nn.Module:
    """A network made where it will run, with random weights: one of billions of parameters need not fit the host's memory."""
    with torch.device("meta"):
        network = make()
    network = network.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm):
                parameter.fill_(1.0 if name == "weight" else 0.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
    return network


def student(sample_shape: Sequence[int], class_count: int, **options: Any) -> nn.Module:
    """A vision transformer as a recipe may name it."""
    return VisionTransformer(sample_shape[1], classes=class_count, **options)
