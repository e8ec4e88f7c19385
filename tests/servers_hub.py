"""The Hugging Face Hub's side of an upload, as huggingface_hub speaks it: repositories, LFS, commits, and their files.

>>> with Hub() as hub:
...     # HF_ENDPOINT=hub.base HF_TOKEN=hub.token HF_HUB_DISABLE_XET=1
...     hub.repos["org/net"].files
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

import servers
import yaml

TOKEN = "hf_SENTINELwRITEtOKEN0123456789"
SIGNED = "X-Signature=SENTINELsIGNATURE"  # lets anybody in who has the link


@dataclass
class Repo:
    """`commits`: (id, message, files by path), oldest first."""

    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    large: set[str] = field(default_factory=set)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2] if self.commits else {}

    @property
    def head(self) -> str:
        return self.commits[-1][0] if self.commits else "0" * 40

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a commit, or of main."""
        if revision == "main":
            return self.files
        return next((files for oid, _, files in self.commits if oid == revision), None)


def git_oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Hub(servers.Server):
    """The server; `failing` has statuses by a part of a path: what such requests are answered with, once each."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = HubHandler
        self.empty()

    def empty(self) -> None:
        """Forget everything."""
        self.token, self.uploads = TOKEN, 0
        self.seen = []
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.failing: list[tuple[str, int]] = []

    def add_repo(self, name: str, files: dict[str, bytes]) -> None:
        """Let a public repository be there, with a commit of somebody's where it has files."""
        commits = [("a" * 40, "somebody's", files)] if files else []
        self.repos[name] = Repo(commits=commits, large=set(files))


class HubHandler(servers.Handler):
    server: Hub

    def do_POST(self) -> None:
        self._route()

    do_PUT = do_GET = do_HEAD = do_POST

    def _route(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.guard:
            self.server.seen.append(servers.Seen(self.command, self.path, headers))
            failure = next((item for item in self.server.failing if item[0] in self.path), None)
            if failure is not None:
                self.server.failing.remove(failure)
                return self._json({"error": "no"}, failure[1])
        path = unquote(self.path.split("?")[0])
        if (asked := re.match(rf"/api/models/{REPO}", path)) and asked[1] not in self.server.repos:
            return self.send(404, {"Content-Length": "0", "X-Error-Code": "RepoNotFound"})
        for method, pattern, answer in ROUTES:
            if self.command in method and (found := re.fullmatch(pattern, path)):
                if method == ("POST",) and headers.get("authorization") != f"Bearer {self.server.token}":
                    return self._json({"error": "who are you?"}, 401)
                with self.server.guard:
                    return answer(self, body, *found.groups())
        return self._json({"error": f"{self.command} {path}"}, 404)

    def _json(self, value: Any, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send(code, {"Content-Type": "application/json", "Content-Length": str(len(content))}, content)

    # ---- what is asked ---------------------------------------------------------------------------------------------

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.server.base}/{name}"}
        if name in self.server.repos:
            return self._json({"error": "You already created this model repo", **url}, 409)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.repos[name] = Repo(private=private)
        return self._json(url)

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        header = content.split("---\n")[1] if content.startswith("---\n") else ""
        good = isinstance(yaml.safe_load(header), dict)
        self._json({"warnings": [], "errors": [] if good else [{"message": "no header"}]}, 200 if good else 400)

    def info(self, body: bytes, name: str, *_: str) -> None:
        repo = self.server.repos[name]
        self._json({"id": name, "sha": repo.head, "private": repo.private, "siblings": []})

    def paths(self, body: bytes, name: str, revision: str) -> None:
        repo = self.server.repos[name]
        found = []
        for path in parse_qs(body.decode())["paths"]:
            if (content := repo.files.get(path)) is not None:
                told = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
                lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
                found.append({**told, **({"lfs": lfs} if path in repo.large else {})})
        self._json(found)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        repo, files = self.server.repos[name], []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            held = repo.files.get(file["path"])
            oid = held and (hashlib.sha256(held).hexdigest() if mode == "lfs" else git_oid(held))
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            links = {
                "upload": {"href": f"{self.server.base}/put/{one['oid']}?{SIGNED}"},
                "verify": {"href": f"{self.server.base}/verify"},
            }
            objects.append({**one, **({} if one["oid"] in self.server.blobs else {"actions": links})})
        self._json({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._json({"error": "other bytes"}, 400)
        self.server.blobs[oid] = body
        self.server.uploads += 1
        return self._json({})

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        good = len(self.server.blobs.get(asked["oid"], b"")) == asked["size"]
        self._json({}, 200 if good else 404)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repo = self.server.repos[name]
        files, message = dict(repo.files), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
                repo.large.add(value["path"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        oid = hashlib.sha1(f"{name} {len(repo.commits)} {message}".encode()).hexdigest()
        repo.commits.append((oid, message, files))
        url = f"{self.server.base}/{name}/commit/{oid}"
        self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        repo = self.server.repos.get(name, Repo())
        content = (repo.at(revision) or {}).get(file)
        if content is None:
            return self._json({"error": "Entry not found"}, 404)
        oid = repo.head if revision == "main" else revision
        digest = hashlib.sha256(content).hexdigest()
        head = {"X-Repo-Commit": oid, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return servers.ranged(content, etag=f'"{digest}"', headers=head)(self)


REPO = r"([^/]+/[^/]+)"
ROUTES: tuple[tuple[tuple[str, ...], str, Any], ...] = (
    (("POST",), "/api/repos/create", HubHandler.create),
    (("POST",), "/api/validate-yaml", HubHandler.validate),
    (("GET",), rf"/api/models/{REPO}(/revision/.+)?", HubHandler.info),
    (("POST",), rf"/api/models/{REPO}/paths-info/([^/]+)", HubHandler.paths),
    (("POST",), rf"/api/models/{REPO}/preupload/([^/]+)", HubHandler.preupload),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", HubHandler.batch),
    (("PUT",), r"/put/([0-9a-f]{64})", HubHandler.put),
    (("POST",), "/verify", HubHandler.verify),
    (("POST",), rf"/api/models/{REPO}/commit/([^/]+)", HubHandler.commit),
    (("GET", "HEAD"), rf"/{REPO}/resolve/([^/]+)/(.+)", HubHandler.resolve),
)
