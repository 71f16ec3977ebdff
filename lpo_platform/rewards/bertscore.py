"""BERTScore recall (arXiv:1904.09675): how much of a reference text a candidate says, token by token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from lpo_platform.config.errors import UserError
from lpo_platform.models.weights import load_tokenizer, whole


class TokenEmbeddings(nn.Module):
    """T texts -> (T, L, d + 1) float32: a unit vector for each token, 0 for padding.

    The last column says whether a token counts. Those that mark start and end do not, as in Tiiiger/bert_score.

    Args:
        weights: folder or hub id of an encoder of transformers with layers in `encoder.layer` (BERT, RoBERTa, DeBERTa).
        layer: whose output is taken, from 1.
        setting: the name of `weights` in messages.
    """

    def __init__(self, weights: str, layer: int, *, setting: str = "encoder") -> None:
        super().__init__()
        self.model = whole(AutoModel.from_pretrained, weights, setting=setting, dtype=torch.float32)
        self.tokenizer = load_tokenizer(AutoTokenizer.from_pretrained, weights, setting=setting)
        most = self.model.config.num_hidden_layers
        if not 1 <= layer <= most:
            raise UserError(f"layer={layer}: {setting}={weights} has layers 1 to {most}")
        self.model.encoder.layer = self.model.encoder.layer[:layer]

    def forward(self, texts: list[str]) -> Tensor:
        longest = self.model.config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = tokens.to(next(self.parameters()).device)
        ids, there = tokens.input_ids, tokens.attention_mask
        hidden = self.model(input_ids=ids, attention_mask=there).last_hidden_state
        counts = there * (ids != self.tokenizer.cls_token_id) * (ids != self.tokenizer.sep_token_id)
        return torch.cat([F.normalize(hidden, dim=-1) * there[..., None], counts[..., None].to(hidden.dtype)], -1)


def recall(candidate: Tensor, reference: Tensor) -> Tensor:
    """Recall of the reference: embeddings (B, L, d + 1) and (B, K, d + 1) -> (B,).

    It is the mean, over the counting tokens of the reference, of the largest cosine with any token of the candidate. It
    is 0 where either text has no counting token.
    """
    closest = (reference[..., :-1] @ candidate[..., :-1].mT).amax(2)
    counts = reference[..., -1] * candidate[..., -1].amax(1, keepdim=True)
    return (closest * counts).sum(1) / counts.sum(1).clamp_min(1)
