"""VQAScore (arXiv:2404.01291): the probability that a vision-language model answers Yes."""

from inspect import signature
from typing import ClassVar

import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.models.weights import Dtype
from lpo_platform.rewards.vision_language import VisionLanguage

QUESTION = 'Does this figure show "{caption}"? Please answer yes or no.'


class Vqa(VisionLanguage):
    """P(answer | picture, question) in [0, 1], from any image-text-to-text model of transformers.

    Args:
        weights: folder or hub id.
        question: `{caption}` stands for the prompt.
        answer: one token; the score is its probability as the first token of the reply. (For CLIP-FlanT5 and LLaVA the
            released code takes the geometric mean of it and the probability that the reply then ends.)
        batch, dtype: see VisionLanguage.
    """

    name: ClassVar[str] = "vqa"

    def __init__(
        self, weights: str, question: str = QUESTION, answer: str = "Yes", batch: Count = 8, dtype: Dtype = "auto"
    ) -> None:
        if "{caption}" not in question:
            raise UserError(f"question={question!r}: must contain {{caption}}, which stands for the prompt")
        super().__init__(weights, batch, dtype)
        self.question, self.answer = question, self._token(answer, weights)
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in signature(self.model.forward).parameters else {}

    def score(self, images: Tensor, prompts: list[str], text: Tensor) -> Tensor:
        options = dict(self.options)
        if self.start is not None:
            options["decoder_input_ids"] = torch.full((len(images), 1), self.start, device=self.device)
        questions = [self.question.replace("{caption}", self.plain(prompt)) for prompt in prompts]
        logits = self.model(**self.inputs(images, questions), **options).logits[:, -1]
        return logits.float().softmax(-1)[:, self.answer]

    def _token(self, answer: str, weights: str) -> int:
        tokens = self.processor.tokenizer.encode(answer, add_special_tokens=False)
        if len(tokens) != 1:
            raise UserError(f"answer={answer}: {len(tokens)} tokens in {weights}; choose an answer of one token")
        return tokens[0]
