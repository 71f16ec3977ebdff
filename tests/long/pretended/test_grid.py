"""Every job that must run on a GPU, on the pretended one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from toys.grid import Cell, cells, line_of, refused
from toys.pretended_cuda import pretended_cuda
from toys.whole_runs import configured, whole

from lpo_platform.config.errors import UserError
from lpo_platform.config.options import shipped
from lpo_platform.tasks import toy_detector

pytestmark = pytest.mark.pretended


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all jobs run, so that they share their caches as the runs of a user do."""
    path = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


@pytest.mark.parametrize("cell", list(cells()), ids=str)
def test_a_job_runs_or_is_refused_with_a_reason(cell: Cell, folder: Path) -> None:
    with pretended_cuda():
        try:
            cfg = configured("hardware=gpu", *cell.line(folder))
        except UserError as error:
            assert refused(cell) and ": " in str(error)
            pytest.skip(str(error))
        whole(cfg, folder / str(cell).replace("/", "-"))
    toy_detector.toy_detector.cache_clear()


@pytest.mark.parametrize("method", shipped("method"))
def test_mixed_precision_on_a_cpu(method: str, folder: Path) -> None:
    whole(configured("hardware=cpu", "hardware.precision=bf16-mixed", *line_of(method)), folder / f"cpu {method}")
