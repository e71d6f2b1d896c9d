"""Standard streams that are closed, full, without a reader or in a small alphabet."""

import subprocess
import sys

import pytest

import nepa_jax
from nepa_jax.base.streams import Lasting
from nepa_jax.cli import main

START = "from nepa_jax.base import streams; streams.make_standard_streams_last()"


def shell(code: str, redirected: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """Python code behind ``make_standard_streams_last``, its streams redirected by the shell."""
    command = f'"{sys.executable}" -c "$CODE" {redirected}'
    return subprocess.run(
        ["bash", "-c", command],
        env={"CODE": f"{START}\n{code}", "PYTHONIOENCODING": encoding, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_nothing_but_the_command_line_takes_the_streams():
    before = sys.stdin, sys.stdout, sys.stderr
    with pytest.raises(nepa_jax.UserError):
        nepa_jax.load("nowhere")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert (sys.stdin, sys.stdout, sys.stderr) == before
    assert not isinstance(sys.__stderr__, Lasting)  # nor did what was imported


@pytest.mark.trial
def test_a_reader_that_went_away_ends_nothing():
    code = "for i in range(50000): print(i, flush=i % 100 == 0)\nprint(repr(streams.lost_output()), file=open(2, 'w'))"
    done = shell(code, "| (exec 0<&-; sleep 1)")
    assert done.stderr == "''\n"


@pytest.mark.trial
def test_a_full_disk_is_told():
    done = shell(
        "print('x' * 100000)\nprint(streams.lost_output(), file=open(2, 'w'))", "> /dev/full"
    )
    assert done.stderr == "No space left on device\n"


@pytest.mark.trial
def test_closed_streams_are_opened_and_no_file_takes_their_place():
    code = (
        "import os, sys, tempfile\nfile = tempfile.TemporaryFile()\nassert file.fileno() > 2\n"
        "print('out'); print('err', file=sys.stderr); assert sys.stdin.read() == ''\n"
        "assert not sys.stdout.isatty(); sys.__stderr__.fileno()\nos._exit(7)"
    )
    assert shell(code, "<&- >&- 2>&-").returncode == 7


@pytest.mark.trial
def test_characters_that_the_terminal_lacks_are_escaped():
    done = shell(
        "import sys; print('caf\\u00e9 \\u2026 \\udcff'); print('\\u2713', file=sys.stderr)",
        "",
        "ascii",
    )
    assert done.stdout == "caf\\xe9 \\u2026 \\udcff\n" and done.stderr == "\\u2713\n"
