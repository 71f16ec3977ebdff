"""Signatures read from source: of classes, dataclasses, inherited and passed-on arguments, types and their limits."""

import inspect
import textwrap
from pathlib import Path

import pytest

from lpo_platform.config import sources
from lpo_platform.config.signature import signature
from lpo_platform.config.sources import NotFound

SOURCE = """
from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional, Union

from seen.types import Form, Settings as S

class Live: ...

class Base:
    def __init__(self, *, policy: Live, steps: int, seed: int = 0):
        raise RuntimeError("never called")

class Child(Base):
    def __init__(self, *, beta: float = 1.0, form: Form = "hard", **shared: Any):
        super().__init__(**shared)

class Plain(Child):
    pass

class Open:
    def __init__(self, a: int, **anything):
        print(anything)

@dataclass(frozen=True)
class Data(S):
    kind: ClassVar[str] = "x"
    path: Path | str
    size: Optional[int] = None
    names: list[str] = field(default_factory=list)
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    either: Union[int, str] = 0
    hidden: int = field(default=0, init=False)
    rest: Sequence[int] = ()

def make(lr: float, parameters, flag: bool = False): ...
"""
TYPES = """
from dataclasses import dataclass
from typing import Literal
Form = Literal["hard", "soft"]
@dataclass
class Settings:
    level: int = 0
"""


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "seen"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "things.py").write_text(SOURCE)
    (folder / "types.py").write_text(textwrap.dedent(TYPES))
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (sources.find_module, sources.parse):
        cached.cache_clear()
    yield
    for cached in (sources.find_module, sources.parse):
        cached.cache_clear()


@pytest.mark.usefixtures("seen")
def test_arguments_of_a_class_its_base_and_what_it_passes_on():
    child = signature("seen.things.Child")
    assert [p.name for p in child.parameters] == ["beta", "form", "policy", "steps", "seed"]
    assert not child.open
    assert [p.name for p in child.parameters if p.required] == ["policy", "steps"]
    assert not child["policy"].scalar and child["steps"].scalar
    assert [p.name for p in signature("seen.things.Plain").parameters] == [p.name for p in child.parameters]
    assert signature("seen.things.Open").open
    assert [p.name for p in signature("seen.things.make").parameters] == ["lr", "parameters", "flag"]


@pytest.mark.usefixtures("seen")
def test_fields_of_a_dataclass():
    data = signature("seen.things.Data")
    names = ["level", "path", "size", "names", "pair", "many", "table", "either", "rest"]
    assert [p.name for p in data.parameters] == names
    assert [p.name for p in data.parameters if p.required] == ["path"]


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize(
    ("target", "name", "good", "bad"),
    [
        ("Child", "beta", [1, 2.5], [True, "1", None, [1.0]]),
        ("Child", "form", ["hard", "soft"], ["sofft", 1, None]),
        ("Child", "seed", [3], [3.0, True, "3"]),
        ("Child", "policy", [{}, 1, "x"], []),
        ("Data", "path", ["pics"], [3, None]),
        ("Data", "size", [3, None], ["3"]),
        ("Data", "names", [[], ["a"]], [[1], "a", {}]),
        ("Data", "pair", [[0, 1.5]], [[0.1], [1, 2, 3], 1.0]),
        ("Data", "many", [[], [1, 2]], [[1.5], 1]),
        ("Data", "table", [{}, {"a": 1}], [{"a": "b"}, [1]]),
        ("Data", "either", [1, "a"], [1.5, None]),
        ("Data", "rest", [[1]], [["a"]]),
        ("make", "flag", [True, False], [0, "true"]),
    ],
)
def test_types_accept_what_the_annotation_says(target: str, name: str, good: list, bad: list):
    kind = signature(f"seen.things.{target}")[name].type
    assert [value for value in good if not kind.accepts(value)] == []
    assert [value for value in bad if kind.accepts(value)] == []


@pytest.mark.usefixtures("seen")
def test_what_does_not_exist_is_named():
    for target, part in [
        ("seen.things.Childd", "seen.things"),
        ("seen.thigns.Child", "seen"),
        ("nowhere.at.All", ""),
        ("Child", ""),
    ]:
        with pytest.raises(NotFound) as error:
            signature(target)
        assert error.value.part == part, target
    assert signature("math.floor") is None


@pytest.mark.parametrize(
    "target",
    [
        "lpo_platform.methods.cpo.CPO",
        "lpo_platform.methods.control.Control",
        "lpo_platform.models.stable_diffusion.StableDiffusion",
        "lpo_platform.models.stable_diffusion_xl.StableDiffusionXL",
        "lpo_platform.models.control.ControlNet",
        "lpo_platform.models.tuning.Lora",
        "lpo_platform.tasks.canny.Canny",
        "lpo_platform.data.toy.Toy",
        "lpo_platform.data.folder.Folder",
        "lpo_platform.evaluation.evaluator.Evaluator",
        "lpo_platform.hardware.hardware.Hardware",
        "lpo_platform.methods.optim.AdamW",
        "lpo_platform.tracking.callbacks.settings.Callbacks",
    ],
)
def test_the_source_says_what_the_imported_class_says(target: str):
    from hydra.utils import get_class

    read = {p.name: p.required for p in signature(target).parameters}
    real: dict[str, bool] = {}
    for kind in get_class(target).__mro__:
        if "__init__" not in vars(kind):
            continue
        items = list(inspect.signature(kind.__init__).parameters.values())[1:]
        real |= {i.name: i.default is i.empty for i in items if i.kind in (i.POSITIONAL_OR_KEYWORD, i.KEYWORD_ONLY)}
        if not any(i.kind is i.VAR_KEYWORD for i in items):
            break
    assert read == real
