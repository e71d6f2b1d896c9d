"""Shows the page while runs go on: on this machine alone, and nothing else."""

import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nepa_jax.base.errors import UserError
from nepa_jax.base.text import to_json
from nepa_jax.report.page import Page, html_of, page_of
from nepa_jax.report.pictures import Picture
from nepa_jax.report.workdirs import find_workdirs

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
REFRESH_S = 5.0
SHARE = 0.1  # of the time, at most, goes to reading the runs


class Source:
    """What is shown: the runs as they were a moment ago, found anew each time."""

    def __init__(self, paths: Sequence[str]):
        self._paths = paths
        self._lock = threading.Lock()
        self._page: Page = {}
        self._again_at = 0.0
        self._pictures: dict[str, bytes] = {}

    def page(self) -> Page:
        """Read at most every few seconds, and less often where reading takes long."""
        with self._lock:
            began = time.monotonic()
            if began >= self._again_at:
                pictures: dict[str, bytes] = {}

                def source(picture: Picture) -> str:
                    pictures[picture.key] = picture.data
                    return f"picture/{picture.key}"

                self._page = page_of(find_workdirs(self._paths), source)
                self._pictures = pictures
                now = time.monotonic()
                self._again_at = now + max(REFRESH_S / 2, (now - began) / SHARE)
            return self._page

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """The type and bytes of what there is at a path of the address; None: nothing."""
        if path == "/":
            return "text/html; charset=utf-8", html_of(self.page(), REFRESH_S).encode()
        if path == "/data":
            return "application/json", to_json(self.page()).encode()
        picture = self._pictures.get(path.removeprefix("/picture/"))
        return picture and ("image/png", picture)


def _handler(source: Source, hosts: Sequence[str]) -> type[BaseHTTPRequestHandler]:
    """Answers requests that name one of these hosts; none: any."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            name = self.headers.get("Host", "").rpartition(":")
            if (
                hosts and (name[0] or name[2]) not in hosts
            ):  # a page of others under a name of theirs
                self.send_error(403)
                return
            try:
                found = source.answer(self.path)
            except UserError as error:  # the runs were moved away
                self.send_error(503, explain=str(error))
                return
            if found is None:
                self.send_error(404)
                return
            kind, body = found
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing of every request."""

    return Handler


class Server(ThreadingHTTPServer):
    """One whose requests end with it, and that says nothing of visitors who left early."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser that goes away is no error."""


def open_server(paths: Sequence[str], host: str, port: int) -> Server:
    """A server of the page of some runs, listening.

    Args:
        paths: workdirs, or folders with some below.
        host: an address of this machine.
        port: 0: any that is free.

    Raises:
        UserError: there are no runs, or the address cannot be had.
    """
    source = Source(paths)
    source.page()
    hosts = LOOPBACK if host in LOOPBACK else ()
    try:
        return Server((host, port), _handler(source, hosts))
    except OSError as error:
        raise UserError(
            f"--port={port}: cannot listen on {host} ({error.strerror}); give another port, or 0 for "
            "any that is free"
        ) from None


def serve(paths: Sequence[str], host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves until Ctrl-C."""
    with open_server(paths, host, port) as server:
        address, chosen = server.server_address[:2]
        say(f"serving http://{address}:{chosen}/ (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("done: no longer served")
