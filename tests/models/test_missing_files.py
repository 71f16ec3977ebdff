"""A file of a pipeline's folder that is not there is named, where the libraries would take another model's settings."""

from pathlib import Path

import pytest
from toys.published import diffusion, networks, sd3
from transformers import AutoTokenizer

from lpo_platform.config.errors import UserError
from lpo_platform.models.stable_diffusion_3 import StableDiffusion3
from lpo_platform.models.weights import load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kinds of text encoders and tokenizers, and weights in several files."""
    place = tmp_path_factory.mktemp("sd3") / "published"
    sd3.medium(place)
    return place


def load(folder: Path) -> None:
    StableDiffusion3(weights=str(folder), max_tokens=12, **diffusion.SETTINGS)


def test_every_configuration_that_is_missing_is_named(folder: Path) -> None:
    load(folder)
    files = [path for path in sorted(folder.glob("*/*")) if path.suffix in (".json", ".txt")]
    needed = [path for path in files if path.name != "special_tokens_map.json" and ".fp16." not in path.name]
    assert len(needed) >= 14 and any(path.name == "model.safetensors.index.json" for path in needed)
    for file in needed:
        away = file.rename(file.with_suffix(".away"))
        with pytest.raises(UserError) as error:
            load(folder)
        away.rename(file)
        text = str(error.value)
        assert file.name in text and file.parent.name in text and str(folder) in text and "\n" not in text, text


def test_a_tokenizer_whose_class_no_file_names_is_one_line(tmp_path: Path) -> None:
    """BERT as it is published: of which class its tokenizer is stands in the model's config.json alone."""
    networks.bert(tmp_path)
    tokenizer = load_tokenizer(AutoTokenizer.from_pretrained, str(tmp_path), setting="tokenizer")
    assert tokenizer("a red").input_ids[0] == tokenizer.cls_token_id
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no usable tokenizer: config\.json is missing") as error:
        load_tokenizer(AutoTokenizer.from_pretrained, str(tmp_path), setting="tokenizer")
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_names_its_class_is_not_said_to_lack_it(tmp_path: Path) -> None:
    """As those of Stable Diffusion, which have no config.json."""
    networks.bert(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    with pytest.raises(UserError) as error:
        load_tokenizer(AutoTokenizer.from_pretrained, str(tmp_path), setting="tokenizer")
    assert "config.json is missing" not in str(error.value) and "\n" not in str(error.value)
