"""The pages in a real Chromium: no error, every picture, and what answers a click, a key or the pointer."""

import asyncio
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
import pytest
from toys.report import make_run, make_sweep

from lpo_platform.evaluation import item_table
from lpo_platform.tracking.report import sweep_table
from lpo_platform.tracking.report.report import write_report
from lpo_platform.tracking.report.serve import server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


class Tab:
    """A tab over the DevTools protocol; `errors` is everything that its console and its scripts complain of."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.numbers, self.errors = socket, itertools.count(1), []

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=30)
            event, said = message.get("method"), message.get("params", {})
            if event == "Runtime.exceptionThrown" or said.get("type") in ("error", "assert"):
                self.errors.append(said)
            if event == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
                self.errors.append(said["entry"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def value(self, expression: str) -> Any:
        answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        end = time.monotonic() + 20
        while not await self.value(expression):
            assert time.monotonic() < end, expression
            await asyncio.sleep(0.1)

    async def open(self, address: str, *, width: int = 1400, scheme: str = "light") -> None:
        for domain in ("Runtime", "Log", "Page"):
            await self.ask(f"{domain}.enable")
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
        await self.ask("Emulation.setDeviceMetricsOverride", **size)
        await self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.ask("Page.navigate", url=address)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def point(self, selector: str, *, press: bool = True) -> None:
        """Moves the pointer to the middle of an element, and clicks."""
        middle = "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]"
        found = f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
        x, y = await self.value(f"{found} e.scrollIntoView({{block: 'center'}}); {middle} }})()")
        for kind in ["mouseMoved", *(["mousePressed", "mouseReleased"] if press else [])]:
            await self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def choose(self, selector: str, value: str) -> None:
        element = f"document.querySelector({json.dumps(selector)})"
        change = (
            f"{element}.value = {json.dumps(value)}; {element}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )
        await self.value(change)

    async def column(self, table: str, index: int) -> list[str]:
        """The texts of a column, of the rows that are shown."""
        return await self.value(
            f"[...document.querySelectorAll({json.dumps(table + ' tbody tr:not([hidden])')})]"
            f".map((row) => row.cells[{index}].textContent)"
        )


Scenario = Callable[[Tab], Awaitable[None]]


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Scenario], None]]:
    """Plays a scenario in a new tab; it fails where the page has complained."""
    profile = tmp_path_factory.mktemp("chromium")
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    process = subprocess.Popen([*words, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL)
    port = profile / "DevToolsActivePort"
    for _ in range(300):
        if port.is_file() and port.read_text().strip():
            break
        time.sleep(0.1)
    address = f"http://127.0.0.1:{port.read_text().split()[0]}"

    async def play(scenario: Scenario) -> None:
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{address}/json/new?about:blank") as answer:
                target = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
            async with session.ws_connect(target, max_msg_size=0) as socket:
                tab = Tab(socket)
                await scenario(tab)
                assert tab.errors == []

    yield lambda scenario: asyncio.run(play(scenario))
    process.terminate()
    process.wait(timeout=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", pictures=8)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_sweep(tmp_path_factory.mktemp("sweeps") / "mine")
    sweep_table.conclude(folder)
    return folder


def page(folder: Path) -> str:
    return (folder / "report.html").as_uri()


def test_every_picture_of_a_run_is_there(browse, run: Path) -> None:
    async def scenario(tab: Tab) -> None:
        await tab.open(page(run))
        await tab.value("document.querySelectorAll('details').forEach((part) => part.open = true)")
        shown = (
            "[...document.images].filter((image) => image.complete && image.naturalWidth && image.width > 40).length"
        )
        assert await tab.value(shown) == await tab.value("document.images.length") == 8 * 5

    browse(scenario)


def test_the_prompts_sort_filter_and_change_their_metric(browse, run: Path) -> None:
    kept = item_table.read(run / "evaluation" / "items.parquet")

    def gains(metric: str) -> list[float]:
        return [item[f"{metric}/after"] - item[f"{metric}/before"] for item in kept]

    async def scenario(tab: Tab) -> None:
        await tab.open(page(run))
        heading = "table.items th:nth-child(5) button"
        for order in (True, False):
            await tab.point(heading)
            column = [float(text) for text in await tab.column("table.items", 4)]
            assert column == pytest.approx(sorted(gains("canny/f1"), reverse=order), abs=6e-4) and len(column) == 128
        await tab.choose("[data-metric]", "image/distance")
        column = [float(text) for text in await tab.column("table.items", 4)]
        assert column == pytest.approx(sorted(gains("image/distance")), abs=6e-3)
        await tab.choose("[data-change]", "better")  # of a distance: less
        assert len(await tab.column("table.items", 4)) == sum(gain < 0 for gain in gains("image/distance"))
        await tab.choose("[data-change]", "all")
        await tab.choose("[data-search]", "GREEN")
        captions = await tab.column("table.items", 1)
        assert len(captions) == sum("green" in item["caption"] for item in kept) and "green" in captions[0]

    browse(scenario)


def test_the_curves_answer_the_pointer_and_the_slider(browse, run: Path) -> None:
    logged = {row["step"]: row["train/loss"] for row in map(json.loads, (run / "metrics.jsonl").open())}

    async def scenario(tab: Tab) -> None:
        await tab.open(page(run))
        await tab.choose("[data-smooth]", "0")
        await tab.point(".chart svg", press=False)
        said = await tab.value("document.querySelector('.chart output').textContent")
        step, value, mean = (float(word.strip(":,")) for word in said.split() if word[0].isdigit())
        assert 120 < step < 180 and value == mean == pytest.approx(logged[step], rel=1e-3)
        await tab.choose("[data-smooth]", "50")
        await tab.point(".chart .cross ~ *, .chart svg", press=False)
        said = await tab.value("document.querySelector('.chart output').textContent")
        near = [logged[other] for other in range(int(step) - 75, int(step) + 76)]
        assert float(said.split()[-1]) == pytest.approx(sum(near) / 151, rel=2e-3)

    browse(scenario)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 760, 400, 320])
def test_no_page_is_wider_than_the_screen(browse, run: Path, sweep_folder: Path, width: int, scheme: str) -> None:
    async def scenario(tab: Tab) -> None:
        for folder in (run, sweep_folder):
            await tab.open(page(folder), width=width, scheme=scheme)
            await tab.value("document.querySelectorAll('details').forEach((part) => part.open = true)")
            assert await tab.value("document.documentElement.scrollWidth") <= width
            colour = await tab.value("getComputedStyle(document.body).backgroundColor")
            brightness = sum(int(part) for part in colour.strip("rgb()").split(",")) / 3
            assert brightness > 240 if scheme == "light" else brightness < 40

    browse(scenario)


def test_the_leaderboard_sorts_and_leads_to_the_jobs(browse, sweep_folder: Path) -> None:
    async def scenario(tab: Tab) -> None:
        await tab.open(page(sweep_folder))
        table = "#leaderboard table"
        assert await tab.column(table, 1) == ["canny/f1"] * 2
        heading = f"{table} th:nth-child(6) button"
        for orders in (["method.beta=500", "method.beta=9"], ["method.beta=9", "method.beta=500"]):
            await tab.point(heading)
            assert await tab.column(table, 0) == orders
        await tab.choose("[data-rows]", "all")
        assert len(await tab.column(table, 1)) == 2 * 3
        await tab.choose("[data-rows]", "image/distance")
        assert await tab.column(table, 1) == ["image/distance"] * 2
        await tab.point("#jobs tbody tr:nth-child(2) a")
        await tab.until("document.title.startsWith('CPO on canny')")
        assert (await tab.value("location.href")).endswith("1-cpo/report.html")

    browse(scenario)


def test_a_live_page_follows_the_training(browse, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pictures=1, steps=20, count=4)

    async def scenario(tab: Tab) -> None:
        await tab.open(f"http://127.0.0.1:{running.server_port}/")
        assert not await tab.value("document.body.textContent.includes('train/news')")
        await asyncio.sleep(3)  # it has asked for the state once
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps({"step": step, "train/news": 1.0 * step}) + "\n" for step in (20, 21))
        await tab.until("document.body?.textContent.includes('train/news')")

    with server(folder, 0) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        try:
            browse(scenario)
        finally:
            running.shutdown()
            thread.join()
