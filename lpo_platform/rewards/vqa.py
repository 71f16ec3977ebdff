"""VQAScore, arXiv 2404.01291: the probability with which a model that answers questions on pictures says Yes."""

from inspect import signature
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

from lpo_platform.config import UserError
from lpo_platform.models.weights import load
from lpo_platform.rewards.pretrained import Dtype, Pretrained, whole

QUESTION = 'Does this figure show "{caption}"? Please answer yes or no.'


class Vqa(Pretrained):
    """P(answer | picture, question) in [0, 1], from any image-text-to-text model of transformers.

    weights: folder or hub id. question: `{caption}` stands for the prompt. The model's chat template puts question and
    picture together; for a model without one the question is the whole prompt, image token included if it needs one.
    answer: one token, whose probability as the first of the reply is the score. (The released code takes, for
    CLIP-FlanT5 and LLaVA, the geometric mean of this with the probability that the reply then ends.)
    """

    name: ClassVar[str] = "vqa"

    def __init__(
        self, weights: str, question: str = QUESTION, answer: str = "Yes", batch: int = 8, dtype: Dtype = "auto"
    ) -> None:
        super().__init__(batch)
        if "{caption}" not in question:
            raise UserError(f"question={question!r}: must contain {{caption}}, which stands for the prompt")
        self.question = question
        self.model = whole(AutoModelForImageTextToText.from_pretrained, weights, setting="weights", dtype=dtype)
        self.processor = load(AutoProcessor.from_pretrained, weights, setting="weights")
        self.answer = self._token(answer, weights)
        text = self.model.config.get_text_config(decoder=True)
        self.start = text.decoder_start_token_id if text.is_encoder_decoder else None
        # Without a decoder of its own the reply begins behind the question, at the last position of every row.
        self.processor.tokenizer.padding_side = "left" if self.start is None else "right"
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in signature(self.model.forward).parameters else {}

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        inputs = self._inputs(images, prompts).to(self.device, self.model.dtype)
        options = dict(self.options)
        if self.start is not None:
            options["decoder_input_ids"] = torch.full((len(images), 1), self.start, device=self.device)
        logits = self.model(**inputs, **options).logits[:, -1]
        return logits.float().softmax(-1)[:, self.answer]

    def _inputs(self, images: Tensor, prompts: list[str]) -> BatchFeature:
        # Pillow pictures are what every processor reads.
        pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
        questions = [self.question.replace("{caption}", self._plain(prompt)) for prompt in prompts]
        if not getattr(self.processor, "chat_template", None):
            return self.processor(images=pictures, text=questions, padding=True, return_tensors="pt")
        return self.processor.apply_chat_template(
            [_conversation(*pair) for pair in zip(pictures, questions, strict=True)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    def _plain(self, prompt: str) -> str:
        """A prompt that writes a control token of the model, say its image token, would ask for a second picture."""
        tokenizer = self.processor.tokenizer
        for token in {*tokenizer.all_special_tokens, str(getattr(self.processor, "image_token", ""))}:
            prompt = prompt.replace(token, " ") if len(token) > 1 else prompt
        return prompt

    def _token(self, answer: str, weights: str) -> int:
        tokens = self.processor.tokenizer.encode(answer, add_special_tokens=False)
        if len(tokens) != 1:
            raise UserError(f"answer={answer}: {len(tokens)} tokens in {weights}; choose an answer of one token")
        return tokens[0]


def _conversation(picture: object, question: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
