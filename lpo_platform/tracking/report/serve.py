"""A report as a live page on this machine: made anew whenever the files that it is made of have changed."""

from __future__ import annotations

from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lpo_platform.config.errors import UserError
from lpo_platform.runs import sweep
from lpo_platform.tracking.report.report import render

HOST = "127.0.0.1"
SOURCES = ("metrics.jsonl", "result.json", "sentinel.json", "sweep.json", "samples")


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the folder's page, ready to `serve_forever`; port 0 is any free one. UserError if it is taken."""
    try:
        return ThreadingHTTPServer((HOST, port), partial(Pages, folder))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--port {port}: {reason}; take another one, or 0 for any free one") from None


def state(folder: Path) -> str:
    """Another text whenever something that a page shows has changed."""
    files = [path / name for path in runs(folder).values() for name in SOURCES]
    return ":".join(str(file.stat().st_mtime_ns) if file.exists() else "-" for file in files)


def runs(folder: Path) -> dict[str, Path]:
    """The pages there are, by their address: the folder's own, and those of the jobs of a sweep."""
    jobs = sweep.runs(folder) if (folder / "sweep.json").is_file() else ()
    return {"/": folder} | {f"/{job.relative_to(folder)}/report.html": job for job in jobs}


class Pages(BaseHTTPRequestHandler):
    """Answers with pages made in memory. An address is looked up among the pages, it never becomes a path."""

    def __init__(self, folder: Path, *args: object) -> None:
        self.folder = folder
        super().__init__(*args)

    def do_GET(self) -> None:
        # a page of another site that calls itself by this machine's address must not read this one
        if self.headers.get("Host", "").partition(":")[0] not in (HOST, "localhost"):
            return self.send_error(403)
        if self.path == "/state":
            return self._answer(state(self.folder), "text/plain")
        page = runs(self.folder).get(self.path)
        return self.send_error(404) if page is None else self._answer(render(page, live=True), "text/html")

    def _answer(self, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the page asks every two seconds."""
