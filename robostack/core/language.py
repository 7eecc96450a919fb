"""Decoder-only language models as compositions of the transformer, and the published sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from robostack.core.attention import Mask
from robostack.core.cache import Cache
from robostack.core.transformer import StreamConfig, Transformer, TransformerConfig
from robostack.core.transformer_parts import Norm


@dataclass(frozen=True)
class LanguageConfig:
    """A transformer of one stream between word embeddings and a language head."""

    vocabulary: int
    transformer: TransformerConfig
    tied: bool = False
    """Whether the head's weight is that of the embeddings."""
    scale: float = 1.0
    """What embeddings are multiplied by."""

    @property
    def stream(self) -> StreamConfig:
        return self.transformer.streams[0]


class LanguageModel(nn.Module):
    """Words in, logits of the next word out."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.stream.width)
        self.transformer = Transformer(config.transformer)
        self.head = None if config.tied else nn.Linear(config.stream.width, config.vocabulary, bias=False)

    def embed(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        """The embeddings of words, as the transformer takes them."""
        return self.words(ids) * self.config.scale

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens width"],
        mask: Mask | None,
        positions: Int[Tensor, "#batch tokens"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """Logits after each token, of words or of pictures; `mask`, `positions` and `cache` as the transformer's."""
        (outputs,) = self.transformer([tokens], mask, positions, None, cache)
        assert outputs is not None
        return F.linear(outputs, self.words.weight) if self.head is None else self.head(outputs)


def gemma(width: int, hidden: int, depth: int = 18, heads: int = 8, head_dim: int = 256) -> LanguageConfig:
    """Gemma (arXiv 2403.08295) with PaliGemma's vocabulary (arXiv 2407.07726)."""
    transformer = TransformerConfig((StreamConfig(width, hidden),), depth, heads, kv_heads=1, head_dim=head_dim)
    return LanguageConfig(257_152, transformer, tied=True, scale=math.sqrt(width))


def llama(width: int, hidden: int, depth: int, heads: int, vocabulary: int = 32_000) -> LanguageConfig:
    """Llama 2 (arXiv 2307.09288) with keys and values for every head, as up to 13B."""
    stream = StreamConfig(width, hidden, norm=Norm(offset=0.0, eps=1e-5), feed_forward="swiglu")
    return LanguageConfig(vocabulary, TransformerConfig((stream,), depth, heads, heads, width // heads))


GEMMA_2B = gemma(2048, 16_384)
GEMMA_300M = gemma(1024, 4096)
LLAMA2_7B = llama(4096, 11_008, depth=32, heads=32)
