"""The S3 API on loopback: moto's server, with faults in front of it on request."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

BUCKET = "shelf"
KEY, SECRET = "AKIALOOPBACK", "aSecretThatMustNotBeShown"
ERROR = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>injected</Message></Error>"


@dataclass
class Faults:
    """What happens to requests before they reach the store.

    `fails`: how many of the next requests are answered with `status`. `every`: besides, one of so many. `slow`: seconds until an answer.
    `only`: which requests that is about, by method and path. `ignores`: whether conditions of writes are dropped.
    """

    fails: int = 0
    every: int = 0
    slow: float = 0.0
    status: int = 503
    only: Callable[[str, str], bool] = lambda method, path: True
    ignores: bool = False
    seen: list[tuple[str, str]] = field(default_factory=list)


class LoopbackS3:
    """A server with one bucket, BUCKET. `faults` may be changed at any time."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.faults, self._lock = Faults(), threading.Lock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _answer(self, environ, start):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        time.sleep(self.faults.slow if self.faults.only(method, path) else 0)
        with self._lock:
            faults = self.faults
            faults.seen.append((method, path))
            fails = faults.only(method, path) and (faults.fails > 0 or (faults.every and len(faults.seen) % faults.every == 0))
            faults.fails -= faults.fails > 0 and fails
        if fails:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(f"{faults.status} injected", [("Content-Type", "application/xml")])
            return [ERROR % (b"SlowDown" if faults.status == 503 else b"InternalError")]
        if faults.ignores:
            for name in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"):
                environ.pop(name, None)
        return self._app(environ, start)

    def clear(self) -> None:
        """An empty bucket, and no faults."""
        import boto3

        self.faults = Faults()
        shelf = boto3.resource("s3", endpoint_url=self.endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
                               region_name="us-east-1").Bucket(BUCKET)
        if shelf.creation_date is None:
            shelf.create()
        shelf.objects.all().delete()

    def close(self) -> None:
        self._server.shutdown()


def use(server: LoopbackS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every client of this process, and of those it starts, reach this server alone."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_DEFAULT_REGION", "us-east-1"),
                        ("AWS_REGION", "us-east-1"), ("AWS_ENDPOINT_URL", server.endpoint), ("AWS_EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(name, value)
