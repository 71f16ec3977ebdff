"""What rewards share that ask a vision-language model about a picture."""

from typing import ClassVar

from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

from lpo_platform.config.numbers import Count
from lpo_platform.models.weights import Dtype, load_tokenizer, whole
from lpo_platform.rewards.pretrained import Pretrained


class VisionLanguage(Pretrained):
    """Any image-text-to-text model of transformers.

    The chat template of the model puts picture and question together. Without a template the question is the whole
    prompt and must contain the image token, if the model needs one.

    Args:
        weights: folder or hub id.
        batch: pictures of one forward.
        dtype: of the model; `auto` is that of its weights.
    """

    name: ClassVar[str]

    def __init__(self, weights: str, batch: Count = 8, dtype: Dtype = "auto") -> None:
        super().__init__(batch)
        self.model = whole(AutoModelForImageTextToText.from_pretrained, weights, setting="weights", dtype=dtype)
        self.processor = load_tokenizer(AutoProcessor.from_pretrained, weights, setting="weights")
        text = self.model.config.get_text_config(decoder=True)
        self.start = text.decoder_start_token_id if text.is_encoder_decoder else None
        # Without a decoder of its own the reply begins behind the question, at the last position of every row.
        self.processor.tokenizer.padding_side = "left" if self.start is None else "right"

    def inputs(self, images: Tensor, questions: list[str]) -> BatchFeature:
        """(b, 3, H, W) uint8 and b questions -> the inputs of the model, on its device."""
        # Pillow pictures are what every processor reads.
        pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
        if not getattr(self.processor, "chat_template", None):
            found = self.processor(images=pictures, text=questions, padding=True, return_tensors="pt")
        else:
            found = self.processor.apply_chat_template(
                [_conversation(*pair) for pair in zip(pictures, questions, strict=True)],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        return found.to(self.device, self.model.dtype)

    def plain(self, prompt: str) -> str:
        """Removes control tokens of the model, such as its image token, which would ask for a second picture."""
        tokenizer = self.processor.tokenizer
        for token in {*tokenizer.all_special_tokens, str(getattr(self.processor, "image_token", ""))}:
            prompt = prompt.replace(token, " ") if len(token) > 1 else prompt
        return prompt


def _conversation(picture: object, question: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
