"""Embeddings of prompts for as long as they are needed, each computed once."""

from collections import Counter

import torch
from torch import Tensor

from lpo_platform.models.adapter import Adapter


class Texts:
    """prompts: those that will be asked for, each as often as it will be. After its last use an embedding is
    dropped."""

    def __init__(self, adapter: Adapter, prompts: list[str]) -> None:
        self.adapter, self.left, self.known = adapter, Counter(prompts), dict[str, Tensor]()

    def __call__(self, prompts: list[str]) -> Tensor:
        """(B, L, D) of B prompts. One is embedded at a time, so that no other prompt decides how it is rounded."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self.known:
                self.known[prompt] = self.adapter.embed(self.adapter.tokenize([prompt]))[0]
        found = torch.stack([self.known[prompt] for prompt in prompts])
        self.left.subtract(prompts)
        self.known = {prompt: text for prompt, text in self.known.items() if self.left[prompt] > 0}
        return found
