"""The page as it is served: on this machine, what it is for, and nothing else."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import told

from nepa_jax.base.errors import UserError
from nepa_jax.report import server as serving


@contextmanager
def served(*paths, host="127.0.0.1"):
    """A function that asks for a path, and gives the status, the type and the bytes."""
    with serving.open_server([str(path) for path in paths], host, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]

        def ask(path, method="GET", **headers):
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            link.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                link.putheader(name, value)
            link.endheaders()
            answer = link.getresponse()
            body = answer.read()
            link.close()
            return answer.status, answer.getheader("Content-Type"), body

        yield ask
        server.shutdown()


@pytest.fixture
def run(tmp_path):
    run = told.write_workdir(tmp_path / "a", steps=200)
    told.write_picture(run / "one.png")
    return run


def test_it_serves_the_page_its_data_and_its_pictures(run):
    with served(run) as ask:
        status, kind, body = ask("/")
        assert status == 200 and kind.startswith("text/html") and b"<!doctype html>" in body
        status, kind, body = ask("/data")
        assert (status, kind) == (200, "application/json")
        (picture,) = json.loads(body)["runs"][0]["pictures"]
        status, kind, body = ask(f"/{picture['source']}")
        assert (status, kind) == (200, "image/png") and body == (run / "one.png").read_bytes()


@pytest.mark.trial
@pytest.mark.parametrize(
    "path",
    ["/config.json", "/../config.json", "/picture/../config.json", "/picture/", "/picture/one.png",
     "/picture/%2e%2e/config.json", "/data/../config.json", "/etc/passwd", "/?x=1", "/page.html", "/%00"],
)  # fmt: skip
def test_it_serves_nothing_else(run, path):
    with served(run) as ask:
        ask("/data")
        status, _, body = ask(path)
        assert status == 404 and b"schedule" not in body


@pytest.mark.trial
def test_pages_of_others_cannot_read_it_under_a_name_of_theirs(run):
    with served(run) as ask:
        assert ask("/data", Host="evil.example")[0] == 403
        assert ask("/data", Host="evil.example:8470")[0] == 403
        for name in ("localhost:1", "127.0.0.1:1", "localhost", "[::1]:1"):
            assert ask("/data", Host=name)[0] == 200
        assert ask("/data", method="POST")[0] == 501


def test_it_listens_on_this_machine_alone_unless_told_otherwise(run):
    with serving.open_server([str(run)], "127.0.0.1", 0) as server:
        assert server.server_address[0] == "127.0.0.1"


@pytest.mark.trial
def test_a_port_that_is_taken_is_one_line(run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            UserError, match=f"--port={port}: cannot listen .* in use.*--port=|another port"
        ):
            serving.open_server([str(run)], "127.0.0.1", port)


@pytest.mark.trial
def test_an_address_that_is_none_of_this_machine_is_one_line(run):
    with pytest.raises(UserError, match=r"cannot listen on no\.such\.host\.invalid"):
        serving.open_server([str(run)], "no.such.host.invalid", 0)


def test_runs_are_read_again_when_they_changed_and_not_for_every_question(run, monkeypatch):
    monkeypatch.setattr(serving, "REFRESH_S", 0.2)
    monkeypatch.setattr(serving, "SHARE", 1e9)
    source = serving.Source([str(run)])
    first = source.page()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 210, "train/loss": 1.0}\n')
    assert source.page() is first
    time.sleep(0.15)
    assert source.page()["runs"][0]["step"] == 210


def test_what_takes_long_to_read_is_read_less_often(run, monkeypatch):
    monkeypatch.setattr(serving, "REFRESH_S", 0.0)
    monkeypatch.setattr(serving, "SHARE", 1e-9)
    source = serving.Source([str(run)])
    assert source.page() is source.page()


@pytest.mark.trial
def test_runs_that_are_moved_away_are_told_and_may_come_back(run, monkeypatch):
    monkeypatch.setattr(serving, "REFRESH_S", 0.0)
    monkeypatch.setattr(serving, "SHARE", 1e9)
    with served(run) as ask:
        away = run.rename(run.with_name("elsewhere"))
        assert ask("/data")[0] == 503
        away.rename(run)
        assert ask("/data")[0] == 200


def test_ctrl_c_ends_it_with_exit_code_0(run):
    command = [sys.executable, "-m", "nepa_jax", "report", str(run), "--serve", "--port=0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("serving http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors) == (0, "done: no longer served\n", "")
