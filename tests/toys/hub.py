"""A model hub on the loopback: the requests of huggingface_hub that create, fill, describe and read repositories.

It keeps everything in memory, wants one token for what writes or is private, and says by its commits what a revision
holds. Files that end in one of LARGE go the way of Git LFS, as on the real hub.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_abcdefghijklmnopqrstuvwxyzabcdefgh"
LARGE = (".safetensors", ".bin", ".pt", ".png", ".parquet", ".tar")
KIND = r"(?P<kind>models|datasets)"
ID = r"(?P<id>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """Commits are file trees by their hash; branches and tags name commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        text = json.dumps([sorted((name, git_oid(data)) for name, data in files.items()), len(self.commits)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.names[branch] = files, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.names.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class Hub:
    """Repositories by `models/<owner>/<name>` or `datasets/<owner>/<name>`.

    Attributes:
        asked: method and path of every request.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, files: dict[str, bytes], *, kind: str = "models", branch: str = "main") -> str:
        """Puts files into a repository, on top of what its branch main holds; returns the commit."""
        repository = self.repositories.setdefault(f"{kind}/{name}", Repository())
        below = repository.commits.get(repository.names.get("main", ""), {})
        return repository.commit(below | files, branch)

    def environment(self, cache: str) -> dict[str, str]:
        """What makes a process of its own ask this hub, with a cache of its own."""
        found = {"HF_ENDPOINT": self.address, "HF_HOME": cache, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        return found | {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def described(name: str, data: bytes) -> dict:
    """A file as the hub lists it."""
    found = {"type": "file", "path": name, "rfilename": name, "size": len(data), "oid": git_oid(data)}
    found["blobId"] = found["oid"]
    if name.endswith(LARGE):
        found["lfs"] = {"oid": sha256(data), "sha256": sha256(data), "size": len(data), "pointerSize": 130}
    return found


class Answer(BaseHTTPRequestHandler):
    """One request. Every route is a method whose first line is its pattern."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def handle_one(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        for pattern, answer in ROUTES[self.command]:
            if found := re.fullmatch(pattern, path):
                return answer(self, **found.groupdict())
        return self.say({"error": f"no such route: {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def say(self, value: object, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, kind: str, name: str) -> Repository | None:
        """The repository, if there is one and who asks may see it; else the answer is given."""
        found = self.hub.repositories.get(f"{kind or 'models'}/{name}")
        if found is None or (found.private and not self.known):
            self.say({"error": "Repository not found"}, 401, X_Error_Code="RepoNotFound")
            return None
        return found

    def tree(self, kind: str, name: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision and its files."""
        if (repository := self.repository(kind, name)) is None:
            return None
        if (sha := repository.resolve(revision or "main")) is None:
            self.say({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return None
        return sha, repository.commits[sha]

    def whoami(self) -> None:
        said = {"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}}
        self.say(said) if self.known else self.say({"error": "Invalid credentials"}, 401)

    def create(self) -> None:
        asked = json.loads(self.body)
        if not self.known:
            return self.say({"error": "Invalid credentials"}, 401)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        place = f"{asked.get('type') or 'model'}s/{name}"
        status = 409 if place in self.hub.repositories else 200
        if status == 200:
            self.hub.repositories[place] = Repository(private=asked.get("visibility") == "private")
            self.hub.repositories[place].commit({})
        return self.say({"url": f"{self.hub.address}/{name}", "name": name}, status)

    def validate(self) -> None:
        self.say({"errors": [], "warnings": []})

    def preupload(self, kind: str, id: str, revision: str) -> None:
        if self.repository(kind, id) is None:
            return
        files = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in files}
        self.say({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})

    def batch(self, id: str, kind: str | None = None) -> None:
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.blobs:
                item["actions"] = {"upload": {"href": f"{self.hub.address}/blobs/{item['oid']}"}}
        self.say({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        right = sha256(self.body) == oid
        if right:
            self.hub.blobs[oid] = self.body
        self.say({}, 200 if right else 400)

    def commit(self, kind: str, id: str, revision: str) -> None:
        if (repository := self.repository(kind, id)) is None:
            return None
        if not self.known:
            return self.say({"error": "no write access"}, 403)
        files = dict(repository.commits[repository.names[revision]])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repository.commit(files, revision)
        return self.say({"commitUrl": f"{self.hub.address}/{id}/commit/{sha}", "commitOid": sha, "success": True})

    def info(self, kind: str, id: str, revision: str | None = None) -> None:
        if (found := self.tree(kind, id, revision)) is not None:
            sha, files = found
            listed = [described(name, data) for name, data in files.items()]
            private = self.hub.repositories[f"{kind}/{id}"].private
            self.say({"id": id, "modelId": id, "sha": sha, "private": private, "tags": [], "siblings": listed})

    def listing(self, kind: str, id: str, revision: str, below: str | None = None) -> None:
        if (found := self.tree(kind, id, revision)) is not None:
            deep, prefix = "recursive=true" in self.path.lower(), f"{below}/" if below else ""
            inside = {name: data for name, data in found[1].items() if name.startswith(prefix)}
            above = {str(folder) for name in inside for folder in PurePosixPath(name).parents} - {".", below}
            folders = [{"type": "directory", "path": name, "oid": git_oid(name.encode()), "size": 0} for name in above]
            listed = folders + [described(name, data) for name, data in inside.items()]
            shown = [item for item in listed if deep or "/" not in item["path"].removeprefix(prefix)]
            self.say([item for item in shown if item["path"].startswith(prefix)])

    def paths(self, kind: str, id: str, revision: str) -> None:
        if (found := self.tree(kind, id, revision)) is not None:
            wanted = json.loads(self.body)["paths"]
            self.say([described(name, data) for name, data in found[1].items() if name in wanted])

    def file(self, id: str, revision: str, path: str, kind: str | None = None) -> None:
        if (found := self.tree(kind or "models", id, revision)) is None:
            return None
        sha, files = found
        if path not in files:
            return self.say({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        data = files[path]
        tag = sha256(data) if path.endswith(LARGE) else git_oid(data)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}
        headers["Accept-Ranges"] = "bytes"
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.send(data, 200, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self.send(data[first : last + 1], 206, headers)


PLACE = rf"/(?:(?P<kind>datasets)/)?{ID}"
READ = [
    (r"/api/whoami-v2", Answer.whoami),
    (rf"/api/{KIND}/{ID}", Answer.info),
    (rf"/api/{KIND}/{ID}/revision/(?P<revision>[^/]+)", Answer.info),
    (rf"/api/{KIND}/{ID}/tree/(?P<revision>[^/]+)(?:/(?P<below>.+))?", Answer.listing),
    (rf"{PLACE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Answer.file),
]
ROUTES = {
    "GET": READ,
    "HEAD": READ,
    "PUT": [(r"/blobs/(?P<oid>\w+)", Answer.put)],
    "POST": [
        (r"/api/repos/create", Answer.create),
        (r"/api/validate-yaml", Answer.validate),
        (rf"/api/{KIND}/{ID}/preupload/(?P<revision>[^/]+)", Answer.preupload),
        (rf"/api/{KIND}/{ID}/commit/(?P<revision>[^/]+)", Answer.commit),
        (rf"/api/{KIND}/{ID}/paths-info/(?P<revision>[^/]+)", Answer.paths),
        (rf"{PLACE}\.git/info/lfs/objects/batch", Answer.batch),
    ],
}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answer,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
