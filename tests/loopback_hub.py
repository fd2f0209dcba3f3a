"""A Hub on loopback: the routes that the real huggingface_hub and datasets clients use, in memory, with faults on request.

It proves what clients do: it knows no xet, no viewer and no quota but the one set here. Files are compared, named and served as the
Hub does: large ones (.parquet, .safetensors, .png) by sha256 through LFS, small ones as git blobs; commits guard their parent.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_aSecretThatMustNotBeShown"
LARGE = (".parquet", ".safetensors", ".png")
KINDS = {"datasets": "dataset", "models": "model"}


@dataclass
class Repo:
    """A repository: commits (id -> path -> bytes) and refs (name -> commit)."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files, commit=None, ref="main"):
        if commit is None:
            commit = hashlib.sha1(repr((sorted((p, hashlib.sha256(d).hexdigest()) for p, d in files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[ref] = commit
        return commit

    def resolve(self, revision):
        return self.refs.get(revision, revision if revision in self.commits else None)

    @property
    def head(self):
        return self.refs["main"]

    @property
    def files(self):
        return self.commits[self.head]


class Answer(Exception):
    """What the server says: a status, JSON or bytes, headers."""

    def __init__(self, status, body=b"", **headers):
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class LoopbackHub:
    """Start with `with LoopbackHub() as hub`; clients find it at `hub.url`.

    Faults: `broken` answers everything with a status; `fail(pattern, status, times)` the next requests whose 'METHOD path' match;
    `cut_after` bytes of uploaded bodies, every connection is dropped, until it is None again; `quota` bytes of large files may be stored; `lose_commits` makes commits and never
    says so.
    Counters: `calls` are 'METHOD path', `sent` the bytes of uploaded bodies that arrived whole, by sha256.
    """

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens: dict[str, str] = {}  # token -> user; none: open to all
        self.expired: set[str] = set()
        self.objects: dict[str, bytes] = {}  # large contents by sha256, committed or not
        self.calls: list[str] = []
        self.sent: dict[str, int] = {}
        self.broken = self.quota = self.cut_after = None
        self.lose_commits = False
        self.page, self.part = 1000, None  # entries of a listing's page; bytes of a part of a multipart upload
        self._faults: list[list] = []
        self._lock = threading.RLock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                hub.serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.stop()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def add(self, kind, name, **settings):
        """An empty repository with its first commit, as the Hub makes it."""
        repo = self.repos[kind, name] = Repo(**settings)
        repo.commit({".gitattributes": b"*.parquet filter=lfs\n"})
        return repo

    def fail(self, pattern, status, times=1, message="", code=""):
        self._faults.append([re.compile(pattern), times, Answer(status, b"", X_Error_Message=message, **({"X_Error_Code": code} if code else {}))])

    def serve(self, handler):
        """One request, whole or cut."""
        path = unquote(urlsplit(handler.path).path)
        with self._lock:
            self.calls.append(f"{handler.command} {path}")
        body = self._receive(handler, path)
        if body is None:  # cut: no answer at all
            handler.close_connection = True
            handler.connection.close()
            return
        try:
            with self._lock:
                answer = self._route(handler, path, parse_qs(urlsplit(handler.path).query), body)
        except Answer as refusal:
            answer = refusal
        if self.lose_commits and path.endswith("/commit/main"):
            handler.connection.close()
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer.body)

    def _receive(self, handler, path):
        """The body, or None if the connection is to be cut within it."""
        size = int(handler.headers.get("content-length") or 0)
        if handler.headers.get("transfer-encoding") == "chunked":
            body = b""
            while length := int(handler.rfile.readline(), 16):
                body += handler.rfile.read(length)
                handler.rfile.readline()
            handler.rfile.readline()
            return body
        upload = handler.command == "PUT" or path.endswith("/commit/main")
        with self._lock:
            budget = self.cut_after if upload else None
            if budget is not None:
                cut = budget < size
                self.cut_after = 0 if cut else budget - size
        if budget is not None and cut:
            handler.rfile.read(budget)
            return None
        return handler.rfile.read(size)

    def _route(self, handler, path, query, body):
        method = handler.command
        fault = self._fault(f"{method} {path}")
        if fault is not None:
            return fault
        if self.broken:
            return Answer(self.broken)
        if path.startswith("/lfs/"):
            return self._store(method, path.removeprefix("/lfs/"), body)
        user = self._user(handler.headers.get("authorization"))
        if path == "/api/whoami-v2":
            return Answer(200, {"type": "user", "name": user, "orgs": []})
        if path == "/api/validate-yaml":
            bad = "license: nonsense" in json.loads(body)["content"]
            return Answer(400 if bad else 200, {"errors": [{"message": '"license" must be one of a list'}] if bad else [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(user, json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._repo("dataset" if found[1] else "model", found[2], user, write=True)
            return self._batch(json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(.+)", path):
            repo = self._repo("dataset" if found[1] else "model", found[2], user)
            return self._read(repo, found[3], handler.headers.get("range"), method)
        if found := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path):
            kind, name, action, rest = KINDS[found[1]], found[2], found[3], found[4]
            repo = self._repo(kind, name, user, write=action in ("commit", "preupload"))
            return self._api(repo, found[1], name, action, rest or "main", query, body)
        return Answer(404, X_Error_Code="RepoNotFound")

    def _fault(self, request):
        """The answer of the next fault that is due for a request; None if there is none."""
        for fault in self._faults:
            pattern, left, answer = fault
            if left and pattern.search(request):
                fault[1] -= 1
                return answer
        return None

    def _user(self, authorization):
        token = (authorization or "").removeprefix("Bearer ")
        if not self.tokens:
            return "team"
        if token and (token not in self.tokens or token in self.expired):
            raise Answer(401, X_Error_Message="Invalid credentials in Authorization header")
        return self.tokens.get(token)

    def _repo(self, kind, name, user, write=False):
        repo = self.repos.get((kind, name))
        if repo is None or (repo.private and user != name.partition("/")[0]):
            raise Answer(404 if user else 401, X_Error_Code="RepoNotFound")
        if write and user != name.partition("/")[0]:
            raise Answer(403, X_Error_Message="you don't have the rights to write here")
        return repo

    def _create(self, user, wanted):
        name = f"{wanted['organization'] or user}/{wanted['name']}"
        if user is None:
            raise Answer(401)
        if (wanted["type"], name) in self.repos:
            raise Answer(409, {"url": f"{self.url}/{name}"})
        if name.partition("/")[0] != user:
            raise Answer(403, X_Error_Message="you don't have the rights to create a repository under this namespace")
        self.add(wanted["type"], name, private=wanted.get("visibility") == "private")
        return Answer(200, {"url": f"{self.url}/{'datasets/' if wanted['type'] == 'dataset' else ''}{name}"})

    def _batch(self, wanted):
        objects = []
        for each in wanted["objects"]:
            oid = each["oid"]
            if self.quota is not None and sum(map(len, self.objects.values())) + each["size"] > self.quota:
                raise Answer(403, X_Error_Message="Private repository storage limit reached, please upgrade your plan")
            entry = {"oid": oid, "size": each["size"]}
            if oid not in self.objects:
                upload: dict[str, Any] = {"href": f"{self.url}/lfs/{oid}"}
                if self.part:
                    parts = -(-each["size"] // self.part)
                    upload["header"] = {"chunk_size": str(self.part)} | {str(n + 1): f"{self.url}/lfs/{oid}/{n + 1}" for n in range(parts)}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/lfs/{oid}/verify"}}
            objects.append(entry)
        return Answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, method, rest, body):
        oid, _, part = rest.partition("/")
        if part == "verify":
            return Answer(200 if oid in self.objects else 404, {})
        if method == "POST":  # the end of a multipart upload
            body = b"".join(self.objects.pop(f"{oid}/{each['partNumber']}") for each in json.loads(body)["parts"])
        elif part:
            self.objects[rest] = body
            return Answer(200, ETag=f'"{part}"')
        if hashlib.sha256(body).hexdigest() != oid:
            return Answer(400)
        self.objects[oid] = body
        self.sent[oid] = self.sent.get(oid, 0) + len(body)
        return Answer(200)

    def _api(self, repo, group, name, action, rest, query, body):  # noqa: PLR0913
        if action == "commit":
            return self._commit(repo, f"{self.url}/{'datasets/' if group == 'datasets' else ''}{name}", [json.loads(line) for line in body.splitlines()])
        if action == "tree":
            ref, folder = next(((r, rest[len(r) + 1:]) for r in [*repo.refs, *repo.commits] if rest == r or rest.startswith(r + "/")), (rest, ""))
        else:
            ref, folder = rest, ""
        commit = repo.resolve(ref)
        if commit is None:
            return Answer(404, X_Error_Code="RevisionNotFound")
        files = repo.commits[commit]
        if action == "preupload":
            return Answer(200, {"files": [{
                "path": each["path"], "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular", "shouldIgnore": False,
                "oid": oid_of(each["path"], files[each["path"]]) if each["path"] in files else None} for each in json.loads(body)["files"]]})
        if action == "tree":
            return self._tree(files, folder, query, f"{self.url}/api/{group}/{name}/tree/{rest}")
        if action == "paths-info":
            paths = parse_qs(body.decode())["paths"]
            return Answer(200, [entry for entry in entries(files) if entry["path"] in paths])
        siblings = [{"rfilename": path} for path in sorted(files)]
        return Answer(200, {"_id": "0" * 24, "id": name, "author": name.partition("/")[0], "sha": commit, "private": repo.private,
                            "gated": repo.gated, "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def _tree(self, files, folder, query, url):
        found = [entry for entry in entries(files) if not folder or entry["path"].startswith(folder + "/")]
        if folder and not found:
            return Answer(404, X_Error_Code="EntryNotFound")
        if query.get("recursive", ["false"])[0].lower() != "true":
            found = [entry for entry in found if "/" not in entry["path"].removeprefix(folder + "/" if folder else "")]
        start = int(query.get("cursor", ["0"])[0])
        more = {"Link": f'<{url}?recursive={query.get("recursive", ["false"])[0]}&cursor={start + self.page}>; rel="next"'} if start + self.page < len(found) else {}
        return Answer(200, found[start : start + self.page], **more)

    def _commit(self, repo, url, lines):
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repo.head:
            return Answer(412, X_Error_Message="A commit has happened since. Please refresh and try again.")
        files = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return Answer(400, X_Error_Message="LFS pointer to a file that does not exist")
                files[value["path"]] = self.objects[value["oid"]]
            else:
                del files[value["path"]]
        return Answer(200, {"success": True, "commitOid": repo.commit(files), "commitUrl": f"{url}/commit/{repo.head}"})

    def _read(self, repo, rest, range_, method):
        revision = next((r for r in [*repo.refs, *repo.commits] if rest.startswith(r + "/")), None)
        if revision is None:
            return Answer(404, X_Error_Code="RevisionNotFound")
        commit, path = repo.resolve(revision), rest[len(revision) + 1:]
        data = repo.commits.get(commit, {}).get(path)
        if repo.gated:
            return Answer(403, X_Error_Code="GatedRepo", X_Repo_Commit=commit)
        if data is None:
            return Answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        headers = {"X_Repo_Commit": commit, "ETag": f'"{oid_of(path, data)}"', "Accept_Ranges": "bytes"}
        if path.endswith(LARGE):
            headers |= {"X_Linked_Etag": headers["ETag"], "X_Linked_Size": str(len(data))}
        if range_ and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", range_)) and method == "GET":
            start, stop = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            return Answer(206, data[start : stop + 1], **headers, Content_Range=f"bytes {start}-{stop}/{len(data)}")
        return Answer(200, data, **headers)


def oid_of(path, data):
    """A file's id: sha256 of a large one, git's of a small one."""
    return hashlib.sha256(data).hexdigest() if path.endswith(LARGE) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entries(files):
    """A commit as the Hub lists it, recursively: files and their folders, sorted."""
    listed = []
    for folder in sorted({parent.as_posix() for path in files for parent in Path(path).parents} - {"."}):
        listed.append({"type": "directory", "path": folder, "oid": "0" * 40, "size": 0})
    for path, data in files.items():
        entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest() if path.endswith(LARGE) else oid_of(path, data)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": oid_of(path, data), "size": len(data), "pointerSize": 130}
        listed.append(entry)
    return sorted(listed, key=lambda entry: entry["path"])


def folder_files(folder):
    """A folder's files, path -> bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def use(hub, home, monkeypatch):
    """Point this process's clients at the hub, logged in as `team`, with nothing of the user's own."""
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    # Read from the environment at import:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between the client's own tries


def environment(hub, home):
    """The same for a process of its own."""
    return os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
                         "HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
