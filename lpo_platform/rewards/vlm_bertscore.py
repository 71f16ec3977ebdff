"""The text reward of DDPO and pose RL: how much of the caption a vision-language model finds in the picture."""

from typing import ClassVar

from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.models.weights import Dtype
from lpo_platform.rewards.bertscore import TokenEmbeddings, recall
from lpo_platform.rewards.vision_language import VisionLanguage


class VlmBertscore(VisionLanguage):
    """BERTScore recall of `reference` in the model's answer, in lower case, without idf or rescaling.

    Most values are 0.3 to 0.8. The defaults are those of pose RL (reward.py of IITP-CARTE-LGE/cnrl2).

    Args:
        weights: folder or hub id of an image-text-to-text model.
        question: asked about every picture.
        max_new_tokens: limit of the answer, which is decoded greedily.
        encoder: folder or hub id of the encoder of BERTScore. DDPO: microsoft/deberta-xlarge-mnli.
        layer: of the encoder. DDPO: 40.
        reference: the text to be found; `{caption}` stands for the prompt. DDPO: "The image contains {caption}".
        batch, dtype: see VisionLanguage.
    """

    name: ClassVar[str] = "vlm_bertscore"

    def __init__(
        self,
        weights: str = "llava-hf/llava-v1.6-mistral-7b-hf",
        question: str = "What is shown in this image?",
        max_new_tokens: Count = 23,
        encoder: str = "google-bert/bert-base-uncased",
        layer: int = 9,
        reference: str = "{caption}",
        batch: Count = 8,
        dtype: Dtype = "auto",
    ) -> None:
        if "{caption}" not in reference:
            raise UserError(f"reference={reference!r}: must contain {{caption}}, which stands for the prompt")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1")
        super().__init__(weights, batch, dtype)
        self.question, self.max_new_tokens, self.reference = question, max_new_tokens, reference
        self.embed = TokenEmbeddings(encoder, layer)

    def encode(self, prompts: list[str]) -> Tensor:
        return self.embed([self.reference.replace("{caption}", prompt) for prompt in prompts])

    def score(self, images: Tensor, prompts: list[str], text: Tensor) -> Tensor:
        return recall(self.embed(self.answers(images)), text)

    def answers(self, images: Tensor) -> list[str]:
        """The model's answers about (b, 3, H, W) uint8."""
        inputs = self.inputs(images, [self.question] * len(images))
        written = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        if self.start is None:  # the reply stands behind the question
            written = written[:, inputs["input_ids"].shape[1] :]
        said = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [answer.strip().lower() for answer in said]
