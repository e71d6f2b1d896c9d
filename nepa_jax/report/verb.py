"""The verb ``nepa-jax report``. Loads nothing until it runs."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from nepa_jax.base.errors import UserError, require_folder
from nepa_jax.base.verbs import option, verb, whole


def add_verbs(verbs: Any) -> None:
    """Adds ``report``."""
    verb(
        verbs, "report", "one page on runs: curves, time, evaluations, pictures; also while they go on",
        "runs/nepa runs/mae --out=report.html",
        option("paths", nargs="+", metavar="W", help="workdirs, or folders with runs below them"),
        option("--out", help="a file .html that stands alone (default: report.html)"),
        option("--serve", action="store_true", help="show it in a browser of this machine, kept up to date"),
        option("--port", type=whole(0, 65_535), help="--serve: where (default: 8470; 0: any that is free)"),
        option("--host", help="--serve: the address to listen on (default: 127.0.0.1, this machine alone)"),
    )(report)  # fmt: skip


def report(args: Namespace) -> None:
    """Writes the page, or serves it."""
    if args.serve:
        if args.out is not None:
            raise UserError(f"--out={args.out}: --serve writes no file; leave one of them out")
        return _serve(args)
    for name in ("port", "host"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name}={getattr(args, name)}: is for --serve; give that too")
    return _write(args.paths, args.out or "report.html")


def _serve(args: Namespace) -> None:
    from nepa_jax.report.server import serve

    host = args.host or "127.0.0.1"
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(f"--host={host}: whoever reaches this machine there can read the runs", flush=True)
    port = 8470 if args.port is None else args.port
    serve(args.paths, host, port, lambda line: print(line, flush=True))


def _write(paths: list[str], out: str) -> None:
    """Raises UserError where there is nothing to tell, or nowhere to write it."""
    file = _writable(out)
    from nepa_jax.evals.results import replace_text
    from nepa_jax.report.page import embedded, html_of, page_of
    from nepa_jax.report.workdirs import find_workdirs

    page = page_of(find_workdirs(paths), embedded)
    runs = page["runs"]
    if not any(run["lines"] for run in runs):
        names = ", ".join(run["path"] for run in runs[:3])
        raise UserError(
            f"{names}: no step is logged yet; give the command again after the first "
            "(log.every_steps), or watch with --serve"
        )
    try:
        replace_text(file, html_of(page))
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror})") from None
    for note in (note for run in runs for note in run["notes"]):
        print(f"  note: {note}")
    many = f"{len(runs)} runs, " if len(runs) > 1 else ""
    print(f"done: {out} ({many}{file.stat().st_size / 1e6:.1f} MB); open it in any browser")
    print(f"next: nepa-jax report {' '.join(paths)} --serve")


def _writable(out: str) -> Path:
    require_folder(out, "--out")
    file = Path(out)
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out={out}: give a file that ends in .html")
    if file.is_dir():
        raise UserError(f"--out={out}: is a folder; give a file in it, such as {out}/report.html")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_name(f".{file.name}.tmp").touch()
        file.with_name(f".{file.name}.tmp").unlink()
    except OSError as error:
        raise UserError(
            f"--out={out}: cannot be written ({error.strerror}); give another"
        ) from None
    return file
