"""The report page of a synthetic run folder: complete, partial and hostile."""

import html
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from toys.report import CHOICES, make_run, make_sweep

from lpo_platform.commands import report
from lpo_platform.evaluation import item_table
from lpo_platform.evaluation.statistics import alone, compare, entry
from lpo_platform.runs import files, record
from lpo_platform.tracking.report import sweep_table
from lpo_platform.tracking.report.page.configuration import compose_defaults
from lpo_platform.tracking.report.page.curves import smoothed, thinned, ticks
from lpo_platform.tracking.report.page.run import Run
from lpo_platform.tracking.report.page.words import duration
from lpo_platform.tracking.report.report import write_report
from lpo_platform.tracking.report.serve import server


class Page(HTMLParser):
    """Collects tags, text and every address that a browser would load."""

    VOID = frozenset({"meta", "img", "br", "line", "circle", "polyline", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.words += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("cpo-tiny-canny") / "2026-01-01_00-00-00")


def test_the_page_holds_everything_and_loads_nothing(run: Path) -> None:
    text = write_report(run).read_text()
    page = Page(text)
    assert page.open == [] and page.handlers == []
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text).replace("http-equiv", "")
    assert page.tags.count("img") == 16 * 5
    assert "CPO raised canny/f1 from" in page.words
    assert "Elsewhere it cost something: image/distance +1." in page.words
    for words in ("better", "worse", "unclear", "train/loss", "cpo/implicit_accuracy", "2 min 28 s", "method=cpo"):
        assert words in page.words
    assert "lpo-train method=cpo task=canny optim.lr=1e-5" in page.words
    assert len(text) < 3_000_000


def test_numbers_of_the_table_are_those_of_the_result(run: Path) -> None:
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    words = Page(write_report(run).read_text()).words
    assert f"{metrics['canny/f1']['before']:.3f}" in words and f"{metrics['canny/f1']['after']:.3f}" in words


@pytest.mark.parametrize(
    "missing",
    [
        "resolved.yaml",
        "env.json",
        "metrics.jsonl",
        "result.json",
        "evaluation/items.parquet",
        ".hydra/hydra.yaml",
        "samples",
    ],
)
def test_a_missing_file_is_said_and_the_rest_still_renders(tmp_path: Path, missing: str) -> None:
    folder = make_run(tmp_path / "run", pictures=2, steps=20, count=10)
    target = folder / missing
    (target.rename(tmp_path / "gone") if target.is_dir() else target.unlink())
    page = Page(write_report(folder).read_text())
    assert page.open == [] and "Before and after" in page.words and "Machine" in page.words


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text())
    assert "This run recorded no before and after." in page.words
    for words in ("result.json holds no metrics", "samples/ holds no pictures", "env.json is missing"):
        assert words in page.words


def test_damaged_files_do_not_stop_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pictures=2, steps=20, count=10)
    (folder / "samples" / "after" / "0.png").write_bytes(b"not a picture")
    (folder / "samples" / "before" / "1.png").unlink()
    (folder / "resolved.yaml").write_text("a: [1,\nb: ${")
    (folder / "env.json").write_text("[]")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "time": 1, "train/loss": null}\n{"step": 21, "ti')
    words = Page(write_report(folder).read_text()).words
    assert "unreadable" in words and "missing" in words and "resolved.yaml is missing" in words


def test_nothing_from_the_run_becomes_markup(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pictures=2, steps=20, count=10)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&$title"
    lines = [json.dumps({**row, "caption": evil}) for row in item_table.read(folder / "evaluation" / "items.parquet")]
    (folder / "evaluation" / "items.jsonl").write_text("\n".join(lines))
    (folder / "evaluation" / "items.parquet").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": s, "time": 1.0, evil: 1.0 + s}) + "\n" for s in (30, 31))
    result = json.loads((folder / "result.json").read_text())
    result["metrics"][evil] = result["metrics"]["canny/f1"]
    result |= {"command": ["lpo-train", evil], "seed": evil}
    record.write_json(folder / "result.json", result)
    record.write_json(folder / "env.json", {"versions": {evil: evil}, "machine": {"cpu": evil}})
    files.write_text(folder / "resolved.yaml", record.resolved_yaml({"a": evil}))
    page = Page(write_report(folder).read_text())
    assert page.tags.count("script") == 1 and page.handlers == [] and "x" not in page.addresses
    assert page.words.count(evil) >= 4


def test_failed_and_running_runs_say_so(tmp_path: Path) -> None:
    record.start(tmp_path, {"seed": 1}, ["lpo-train"])
    assert "This run has no result yet." in Page(write_report(tmp_path).read_text()).words
    record.fail(tmp_path, "the GPU ran out of memory")
    assert "This run failed: the GPU ran out of memory" in Page(write_report(tmp_path).read_text()).words


def test_large_pictures_are_scaled_down_and_only_tiny_ones_drawn_with_hard_pixels(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pictures=1, side=1024, steps=5, count=4)
    text = write_report(folder).read_text()
    assert "data:image/webp" in text and "class=tiny" not in text and len(text) < 1_000_000


def test_difference_to_the_defaults_lists_what_was_changed(tmp_path: Path) -> None:
    defaults = compose_defaults(CHOICES)
    assert defaults is not None and "hydra" not in defaults
    changed = {**defaults, "seed": 7}
    folder = make_run(tmp_path / "run", pictures=1, steps=5, count=4)
    files.write_text(folder / "resolved.yaml", record.resolved_yaml(changed))
    words = Page(write_report(folder).read_text()).words
    assert "Differs from the defaults of these options in 1 value" in words
    files.write_text(folder / "resolved.yaml", record.resolved_yaml(defaults))
    assert "Every value is the default" in Page(write_report(folder).read_text()).words


def test_the_optimised_metric_is_the_tasks_and_the_rest_are_guards() -> None:
    metrics = dict.fromkeys(
        ["text/alignment", "canny/f1", "canny/recall"], entry(0, 1, (0.5, 1.5), higher_is_better=True)
    )
    assert Run(Path(), result={"metrics": metrics}, choices={"task": "canny"}).main == "canny/f1"
    assert Run(Path(), result={"metrics": metrics}).main == "text/alignment"


def test_chart_arithmetic() -> None:
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    points = [(i, float(i == 777)) for i in range(5000)]
    kept = thinned(points)
    assert len(kept) <= 802 and (777, 1.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]
    for low, high in [(0.0, 1.0), (-3.2, 7.9), (1e-5, 3e-5), (2.0, 2.0), (0.0, 0.0), (120, 180000)]:
        marks = ticks(low, high)
        slack = 1e-9 * max(abs(low), abs(high))
        assert marks[0] - slack <= low <= high <= marks[-1] + slack and 2 <= len(marks) <= 7
    assert [duration(s) for s in (9.34, 125, 11520)] == ["9.3 s", "2 min 05 s", "3 h 12 min"]


def test_the_sentinels_findings_are_told_from_silence_and_from_no_sentinel(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pictures=1, steps=5, count=4)
    assert "Not watched" in Page(write_report(folder).read_text()).words
    record.write_json(folder / "sentinel.json", [])
    assert "found nothing" in Page(write_report(folder).read_text()).words
    alarm = {"step": 40, "metric": "guard/<area>", "kind": "drift", "message": "objects grow & grow"}
    record.write_json(folder / "sentinel.json", [alarm])
    words = Page(write_report(folder).read_text()).words
    assert "1 alarm" in words and "guard/<area>" in words and "objects grow & grow" in words and "40" in words


def test_every_item_stands_in_the_table_with_the_numbers_of_every_metric(run: Path) -> None:
    text = write_report(run).read_text()
    data = json.loads(html.unescape(re.search(r'data-items="([^"]*)"', text).group(1)))
    kept = item_table.read(run / "evaluation" / "items.parquet")
    assert set(data["values"]) == {"canny/f1", "text/alignment", "image/distance"} and len(kept) == 128
    for name, pairs in data["values"].items():
        wanted = [[item[f"{name}/before"], item[f"{name}/after"]] for item in kept]
        np.testing.assert_allclose(pairs, wanted, rtol=1e-5)
    assert data["better"] == {"canny/f1": True, "text/alignment": True, "image/distance": False}


def test_a_model_alone_shows_its_values_and_how_it_departs_from_what_is_published(tmp_path: Path) -> None:
    values = np.array([0.1, 0.3, 0.5, 0.7, 0.2, 0.6])
    scores = compare({"fid": values}, {"fid": values}, {"fid": False}, resamples=100)
    record.start(tmp_path, {"seed": 0}, ["lpo-eval"])
    record.finish(tmp_path, alone(scores, {"fid": values}), 6, 1.0, {}, 0, ["6 items instead of 500"])
    sides = {"after": {"fid": values}}
    item_table.write(tmp_path / "evaluation" / "items.parquet", list("abcdef"), ["a cat"] * 6, sides)
    words = Page(write_report(tmp_path).read_text()).words
    assert words.count("a cat") == 6 and words.count("n/a") == 12
    assert "fid is 0.40 [0." in words and "Not as published: 6 items instead of 500." in words


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("sweeps") / "mine")


def test_a_sweeps_page_is_a_leaderboard_of_its_settings(sweep_folder: Path) -> None:
    _, table = sweep_table.conclude(sweep_folder)
    page = Page((sweep_folder / "report.html").read_text())
    assert table and page.open == []
    assert "4 of 5 jobs finished. 4-cpo failed: beta: <not> a number." in page.words
    # differences 0 and 0.02 of the one setting, 0.04 and 0.06 of the other: t(1) x half their distance, 12.706 x 0.01
    assert "Best by canny/f1: method.beta=500, +0.05 [-0.08, +0.18], unclear." in page.words
    assert "lpo-train -m method.beta=500 task=canny seed=0,1" in page.words
    assert {f"{number}-cpo/report.html" for number in range(5)} <= set(page.addresses)
    assert page.tags.count("img") == 2 * 2 * 5


@pytest.fixture
def served(sweep_folder: Path) -> Iterator[str]:
    with server(sweep_folder, 0) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def ask(address: str, path: str, host: str | None = None) -> tuple[int, str]:
    connection = HTTPConnection(address, timeout=20)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_a_live_page_is_made_anew_and_nothing_else_is_served(served: str, sweep_folder: Path) -> None:
    code, text = ask(served, "/")
    assert code == 200 and "connect-src 'self'" in text and "fetch(" in text
    assert ask(served, "/0-cpo/report.html")[0] == 200
    for path in ("/0-cpo/result.json", "/..", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd",
                 "/0-cpo/../0-cpo/report.html", str(sweep_folder)):  # fmt: skip
        assert ask(served, path)[0] == 404, path
    assert ask(served, "/", host="evil.example")[0] == 403
    before = ask(served, "/state")[1]
    assert ask(served, "/state")[1] == before
    with (sweep_folder / "0-cpo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "time": 1.0, "train/news": 1.0}\n')
    assert ask(served, "/state")[1] != before and "train/news" in ask(served, "/0-cpo/report.html")[1]


def lpo_report(*arguments: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["lpo-report", *arguments])
    with pytest.raises(SystemExit) as end:
        report.main()
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out, shown.err


def test_lpo_report_rebuilds_a_page_and_says_what_it_cannot(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    kit = {"capsys": capsys, "monkeypatch": monkeypatch}
    (run / "report.html").unlink(missing_ok=True)
    assert lpo_report(str(run), **kit)[:2] == (0, f"{run / 'report.html'}\n") and (run / "report.html").is_file()
    (run.parent / "latest").symlink_to(run.name)
    assert lpo_report(str(run.parent), **kit)[0] == 0
    assert lpo_report(str(tmp_path / "none"), **kit) == (2, "", f"lpo-report: {tmp_path / 'none'}: no such folder\n")
    code, _, said = lpo_report(str(tmp_path), **kit)
    assert code == 2 and said.startswith(f"lpo-report: {tmp_path}: not a run (") and said.count("\n") == 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, said = lpo_report(str(run), "--watch", "--port", port, **kit)
    advice = "take another one, or 0 for any free one"
    assert code == 2 and said == f"lpo-report: --port {port}: Address already in use; {advice}\n"
    code, _, said = lpo_report(str(run), "--watch", "--port", "70000", **kit)
    assert code == 2 and said.endswith(f"{advice}\n") and said.count("\n") == 1


def test_watching_ends_with_ctrl_c_and_needs_no_torch(run: Path) -> None:
    code = "import sys\nfrom lpo_platform.commands import report\n"
    code += "try: report.main()\nfinally: print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, str(run), "--watch", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = re.match(r"http://([^/]+)/ shows ", process.stdout.readline()).group(1)
            assert ask(address, "/")[0] == 200
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()  # one that does not end would be waited for without end
    assert process.returncode == 0 and out == "False\n" and err == ""
