"""Tables of runs: their figures by hand, escaping against other parsers, and the list behind the README's tables."""

import itertools
import math
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from toys.report import make_sweep

from lpo_platform.commands import results
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF
from lpo_platform.runs import files, record, sweep
from lpo_platform.tracking.tables import finished_runs, planned_runs
from lpo_platform.tracking.tables.table import FORMATS, Code, Table, html, latex, markdown

REPO = Path(__file__).resolve().parents[2]
LIST = planned_runs.read(results.README)
HOSTILE = r"a_b & 50 % | <i>x</i> \cmd {y} ~z #1 $2 ^3 [t](u) *s* `q` --flag"


def outcome(folder: Path, overrides: list[str], choices: dict, metrics: dict[str, tuple], seed: int = 0) -> Path:
    """A finished run; of each metric (before, after, low, high)."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(overrides, folder / ".hydra" / "overrides.yaml")
    OmegaConf.save({"hydra": {"runtime": {"choices": choices}}}, folder / ".hydra" / "hydra.yaml")
    record.start(folder, {"seed": seed}, ["lpo-train", *overrides])
    entries = {
        name: {"before": b, "after": a, "difference": a - b, "ci95": [low, high], "higher_is_better": True}
        for name, (b, a, low, high) in metrics.items()
    }
    record.finish(folder, entries, 8, 1.0, {}, seed)
    return folder


def canny(folder: Path, seed: int, after: float, half: float = 0.01) -> Path:
    choices = {"method": "cpo", "model": "tiny", "task": "canny", "data": "toy"}
    overrides = ["method=cpo", "task=canny", f"seed={seed}", "logger=none", f"hydra.run.dir={folder}"]
    return outcome(
        folder, overrides, choices, {"canny/f1": (0.40, after, after - 0.40 - half, after - 0.40 + half)}, seed
    )


def test_seeds_of_a_setting_are_one_line_with_one_command(tmp_path: Path) -> None:
    folders = [canny(tmp_path / str(seed), seed, after, half=0) for seed, after in enumerate((0.44, 0.46))]
    found, left = finished_runs.read(folders)
    table = finished_runs.summary(found)
    # mean 0.05 +- t(1) s / sqrt(2) = 12.706 x 0.01
    line = ["cpo, tiny", "canny/f1", "0, 1", "0.40", "0.45", "+0.05 [-0.08, +0.18]", "unclear"]
    assert left == [] and table.rows == [[*line, "lpo-train -m method=cpo task=canny seed=0,1 logger=none"]]
    assert isinstance(table.rows[0][-1], Code) and "Student t over 2 seeds" in table.notes[0]


def test_sweeps_come_apart_into_their_settings_and_what_failed_is_named(tmp_path: Path) -> None:
    found, left = finished_runs.read([make_sweep(tmp_path / "sweep")])
    assert [path.name for path in left] == ["4-cpo"]
    rows = finished_runs.summary(found, ["text/alignment", "canny/f1"]).rows
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (f"cpo, tiny, method.beta={beta}", metric, "0, 1")
        for beta in (9, 500)
        for metric in ("text/alignment", "canny/f1")
    ]


def test_ours_stand_beside_the_papers_figures_in_the_papers_unit(tmp_path: Path) -> None:
    found, _ = finished_runs.read([canny(tmp_path / "a", 0, 0.44)])
    controllability, quality = finished_runs.beside_paper(found, "cpo")
    assert controllability.heads == ["method", "ADE", "COCO-Stuff", "COCO-Pose", "HumanArt", "Canny", "HED", "Lineart",
                                     "Depth", "source"]  # fmt: skip
    lines = {row[0]: row[1:] for row in controllability.rows}
    assert lines["CPO"] == ["44.81", "35.49", "87.98", "45.71", "39.28", ".8201", ".8447", "27.49", finished_runs.PAPER]
    assert lines["before: cpo, tiny, on toy"][:5] == ["-", "-", "-", "-", "40.0"]
    assert lines["cpo, tiny, on toy"][4] == "44.0 (+4.0 [+3.0, +5.0])"
    assert lines["cpo, tiny, on toy"][-1] == "lpo-train method=cpo task=canny seed=0 logger=none"
    assert all(row[-1] == finished_runs.PAPER for row in quality.rows) and "None of the given runs" in quality.notes[-1]


def test_departures_stand_in_the_tables_beside_the_papers(tmp_path: Path) -> None:
    """Once for seeds that share them, and of a run without a protocol that it has none."""
    lines = ["task.uint8_wrap=False instead of True", "data Toy instead of limingcv/MultiGen-20M_canny_eval"]
    for seed in (0, 1):
        folder = canny(tmp_path / str(seed), seed, 0.44)
        OmegaConf.save({"metrics": {"protocol": {"name": "cpo"}}}, folder / "resolved.yaml")
        record.write_json(folder / "result.json", files.read_json(folder / "result.json") | {"deviations": lines})
    found, _ = finished_runs.read([tmp_path / "0", tmp_path / "1"])
    note = f"Not as in the protocol, cpo, tiny, canny: {lines[0]}; {lines[1]}."
    for table in (finished_runs.beside_paper(found, "cpo")[0], finished_runs.summary(found)):
        assert table.notes.count(note) == 1
        for form in FORMATS.values():
            assert "instead of True" in form(table)
    assert note not in finished_runs.beside_paper(found, "cpo")[1].notes  # nothing of them stands there
    own, _ = finished_runs.read([canny(tmp_path / "own", 0, 0.44)])
    assert "measured with settings of our own" in finished_runs.beside_paper(own, "cpo")[0].notes[-1]
    assert len(finished_runs.summary(own).notes) == 1


def test_a_paper_column_takes_the_runs_of_its_task_and_data(tmp_path: Path) -> None:
    metrics = {"quality/fid": (20.0, 18.0, -3.0, -1.0), "quality/clip_score": (30.0, 30.5, 0.0, 1.0)}
    metrics["pose/ap"] = (0.5, 0.6, 0.05, 0.15)
    choices = {"method": "cpo", "model": "sd15", "task": "pose", "data": "humanart"}
    found, _ = finished_runs.read([outcome(tmp_path / "a", ["task=pose"], choices, metrics)])
    controllability, quality = finished_runs.beside_paper(found, "cpo")
    assert controllability.rows[-2][1:9] == ["-", "-", "-", "50.0", "-", "-", "-", "-"]
    assert quality.rows[-1][1:5] == ["-", "-", "-", "18.0 (-2.0 [-3.0, -1.0])/30.5 (+0.5 [0.0, +1.0])"]


def test_the_published_figures_are_whole() -> None:
    tables = finished_runs.published()
    assert set(tables) == {"cpo", "lpo", "pose_ddpo"}
    for table in (table for paper in tables.values() for table in paper):
        assert all(len(figures) == len(table["columns"]) for figures in table["rows"].values()), table["title"]
    lpo = tables["lpo"][0]["rows"]
    assert lpo["SD1.5, LPO"] == ["21.69", ".6588", "27.64", "27.86", "5.945", "48.39", "48.77"]
    assert lpo["SDXL, SPO, evaluated again"] == ["22.70", ".9951", "28.42", "31.15", "6.343", "50.52", "52.75"]
    pose = tables["pose_ddpo"][0]["rows"]
    assert pose["model 4: body+hands+face, VLM + keypoints, 22525 steps"] == ["0.6813", "0.8041", "31.5403"]


class Cells(HTMLParser):
    """The texts of an HTML table, cell by cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag: str, _: list) -> None:
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and data != "\n":
            self.cells[-1] += data


def test_html_shows_every_sign_as_it_is() -> None:
    page = Cells(html(Table("t", ["h & <h>"], [[HOSTILE], [Code(HOSTILE)]])))
    assert page.cells == ["h & <h>", HOSTILE, HOSTILE] and "i" not in page.tags and page.tags.count("code") == 1


def test_markdown_shows_every_sign_as_it_is() -> None:
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    odd = Code("a`b ``c`` | d")
    page = Cells(parser.render(markdown(Table("t", ["h"], [[HOSTILE], [Code(HOSTILE)], [odd]]))))
    assert page.cells == ["h", HOSTILE, HOSTILE, odd] and page.tags.count("code") == 2
    assert not {"i", "em", "a"} & set(page.tags)


def test_latex_escapes_what_tex_would_read() -> None:
    text = latex(Table("50 % of a_b", ["h & i"], [["[x] y_1 {z}", Code("lpo-train -m --cfg a\\b ~c ^d #e $f <g>")]]))
    assert r"h \& i \\" in text and r"\caption{50 \% of a\_b.}" in text
    assert r"{}[x] y\_1 \{z\} & \texttt{lpo-train -m -{}-cfg a\textbackslash{}b \textasciitilde{}c" in text
    assert r"\textasciicircum{}d \#e \$f \textless{}g\textgreater{}} \\" in text


def test_commands_repeat_what_was_run() -> None:
    jobs = [
        ["sweep=cpo_tasks", f"task={t}", f"seed={s}", "hydra.sweep.dir=x"] for t in ("canny", "hed") for s in (0, 1)
    ]
    assert sweep.repeat("train", jobs) == [["lpo-train", "-m", "sweep=cpo_tasks", "task=canny,hed", "seed=0,1"]]
    assert sweep.repeat("train", jobs[:3]) == [["lpo-train", *job[:3]] for job in jobs[:3]]
    assert sweep.repeat("eval", [["run=a"], ["run=a"]]) == [["lpo-eval", "run=a"]]
    assert sweep.repeat("train", [["method=cpo"], ["task=hed"]]) == [
        ["lpo-train", "method=cpo"],
        ["lpo-train", "task=hed"],
    ]
    assert diagnose("train", sweep.repeat("train", jobs)[0][2:], [], conf=CONF, multirun=True, values=True) == []


def test_the_readmes_tables_name_methods_and_tasks_that_there_are() -> None:
    methods, tasks = LIST.values()
    named = {word for row in methods for word in row.run if word.startswith("method=")}
    assert named and named <= {f"method={name}" for name in shipped("method")}
    assert {row.run[1] for row in tasks} <= {f"task={name}" for name in shipped("task") if name != "none"}


@pytest.mark.slow
def test_every_run_of_the_readmes_tables_composes(tmp_path: Path) -> None:
    for row in itertools.chain(*LIST.values()):
        line = [*row.overrides(tmp_path), "seed=0", f"hydra.run.dir={row.folder(tmp_path, 0)}"]
        assert diagnose("train", line, [], conf=CONF, multirun=False, values=True) == [], row.name


def test_only_missing_runs_are_made_and_failures_stop_no_other(tmp_path: Path, capsys) -> None:
    rows = [
        planned_runs.Row("a", "canny/f1", ["method=cpo", "task=canny"], title="A", seeds=(0, 1)),
        planned_runs.Row("b", "canny/f1", ["task=canny", "control.weights={a}/export"], title="B"),
        planned_runs.Row("c", "canny/f1", ["task=hed"], title="C"),
    ]
    canny(tmp_path / "a-0", 0, 0.44)
    (tmp_path / "a-1" / ".hydra").mkdir(parents=True)
    (tmp_path / "a-1" / ".hydra" / "overrides.yaml").touch()  # interrupted
    asked = []

    def start(arguments: list[str]) -> int:
        asked.append(arguments)
        return int("task=hed" in arguments)

    failed = planned_runs.make({"t": rows, "again": rows[:1]}, tmp_path, start)
    assert asked == [
        [f"resume={tmp_path}/a-1"],
        ["task=canny", f"control.weights={tmp_path}/a-0/export", "seed=0", f"hydra.run.dir={tmp_path}/b-0"],
        ["task=hed", "seed=0", f"hydra.run.dir={tmp_path}/c-0"],
    ]
    assert failed == [tmp_path / "c-0"] and "4 of 4: c-0" in capsys.readouterr().err
    table = planned_runs.table("t", rows, tmp_path)
    assert table.heads == ["", "before", "seed 0", "seed 1", "command"]
    assert table.rows[0] == ["A", "0.400", "+0.040 [+0.030, +0.050]", "not run",
                             "lpo-train method=cpo task=canny seed=0 logger=none"]  # fmt: skip
    assert table.rows[2][1:4] == ["", "not run", ""]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no folder is given"),
        (["conf"], "conf: neither a run nor a sweep"),
        (["--make", "x", "--only", "nothing"], "--only nothing: no such row; there are control,"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(sys, "argv", ["lpo-results", *arguments])
    with pytest.raises(SystemExit, match="2"):
        results.main()
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and words in shown.err


def test_beside_a_run_that_did_not_finish_the_newest_that_did_is_named(tmp_path: Path, capsys, monkeypatch) -> None:
    finished = [canny(tmp_path / "runs" / name, 0, 0.44) for name in ("1", "2")]
    record.start(tmp_path / "runs" / "3", {"seed": 0}, ["lpo-train"])
    record.link_latest(tmp_path / "runs" / "3")
    (tmp_path / "sweeps" / "empty").mkdir(parents=True)
    record.write_json(tmp_path / "sweeps" / "empty" / "sweep.json", {"status": "running", "overrides": []})
    for given, words in (("runs", f"give {finished[-1]}, which did"), ("sweeps/empty", "there is nothing to show")):
        monkeypatch.setattr(sys, "argv", ["lpo-results", f"run={tmp_path / given}"])
        with pytest.raises(SystemExit, match="2"):
            results.main()
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.endswith(f": did not finish; {words}\n") and shown.err.count("\n") == 1


def test_a_metric_without_a_number_is_left_out(tmp_path: Path) -> None:
    folder = canny(tmp_path / "a", 0, 0.44)
    result = files.read_json(folder / "result.json")
    result["metrics"]["canny/f1"]["before"] = math.nan
    record.write_json(folder / "result.json", result)
    assert finished_runs.summary(finished_runs.read([folder])[0]).rows == []


def test_a_model_alone_has_a_value_and_no_base(tmp_path: Path) -> None:
    choices = {"model": "sd15", "task": "none", "data": "prompts"}
    folder = outcome(tmp_path / "a", ["model=sd15"], choices, {"preference/hps_v2": (0.1, 0.2646, 0.1, 0.2)})
    result = files.read_json(folder / "result.json")
    result["metrics"]["preference/hps_v2"] |= {"before": None, "difference": None, "ci95": [None, None],
                                               "own_ci95": [0.260, 0.269]}  # fmt: skip
    record.write_json(folder / "result.json", result)
    found, _ = finished_runs.read([folder])
    assert finished_runs.summary(found).rows[0][:7] == ["sd15", "preference/hps_v2", "0", "", "0.2646", "", ""]
    (table,) = finished_runs.beside_paper(found, "lpo")
    assert [row[3] for row in table.rows[-2:]] == ["28.96", "26.46"] and table.rows[-1][0] == "sd15, on prompts"
