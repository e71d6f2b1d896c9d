"""Stand-ins for the cloud's commands: they record how they are called, and answer from a script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
COMMANDS = ("gcloud", "kubectl", "sbatch", "srun", "scancel", "scontrol")

STAND_IN = r"""#!/usr/bin/env bash
{ printf '%s' "${0##*/}"; printf '\x1f%s' "$@"; printf '\x1e'; } >> "$CLOUD/calls"
# Prints the first line of a file and, while there are more, removes it.
next() { head -n 1 "$CLOUD/$1"; [[ $(wc -l < "$CLOUD/$1") == 1 ]] || sed -i 1d "$CLOUD/$1"; }
source "$CLOUD/answers"
"""


class Cloud:
    """Runs launch scripts with the stand-ins first on PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        for command in COMMANDS:
            (folder / "bin" / command).write_text(STAND_IN)
            (folder / "bin" / command).chmod(0o755)
        self.answer("")
        self.environment = os.environ | {
            "CLOUD": str(folder),
            "HOME": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }

    def answer(self, script: str, **lines: list[str]) -> None:
        """What stand-ins do, in bash: ``$0`` and ``$*`` tell which; ``next NAME`` pops a line."""
        (self.folder / "answers").write_text(script)
        for name, values in lines.items():
            (self.folder / name).write_text("".join(f"{value}\n" for value in values))

    def start(self, script: str, *arguments: str) -> subprocess.Popen:
        (self.folder / "calls").write_text("")
        command = [sys.executable] if script.endswith(".py") else ["bash"]
        return subprocess.Popen(
            [*command, str(LAUNCH / script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )

    def run(self, script: str, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = self.start(script, *arguments)
        try:
            output, error = process.communicate(timeout=30)
        finally:
            process.kill()
        return process.returncode, output, error

    def calls(self) -> list[list[str]]:
        """The words of every command that was executed."""
        text = (self.folder / "calls").read_text()
        return [call.split("\x1f") for call in text.split("\x1e")[:-1]]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)
