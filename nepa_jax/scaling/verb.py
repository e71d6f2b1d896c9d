"""The verbs ``nepa-jax scaling …``. Load nothing until they run."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nepa_jax.base.errors import UserError, require_folder
from nepa_jax.base.verbs import group, option, verb, whole

if TYPE_CHECKING:
    from nepa_jax.scaling.analysis import Analysis, Asked
    from nepa_jax.scaling.points import Columns, Points

TABLE = group(
    "of a CSV",
    "which of its columns are what",
    option("--columns", default="parameters,training_flops,loss", help="of parameters, FLOPs and loss; default: %(default)s"),
    option("--samples", metavar="COLUMN", help="samples seen, with repeats (default: FLOPs / 6 parameters)"),
    option("--unique", metavar="COLUMN", help="different samples, to tell them from repeats"),
    option("--objective", metavar="COLUMN", help="what was trained: a fit for each"),
    option("--error", metavar="COLUMN", help="a downstream error, to compare objectives by; of workdirs a probe, such as knn"),
)  # fmt: skip


def add_verbs(verbs: Any) -> None:
    """Adds ``scaling`` with ``fit`` below it."""
    below = verbs.add_parser("scaling", help="scaling laws").add_subparsers(metavar="WHAT")
    verb(
        below, "fit", "fit the law L(N, D) to runs: constants, intervals, hold-out, figures, report",
        "POINTS.csv --columns=parameters,training_flops,loss --out=law",
        option("paths", nargs="+", metavar="PATH", help="a CSV; or workdirs, or folders with some below"),
        option("--out", required=True, help="folder for fit.json, points.csv, figures, report.md"),
        TABLE,
        option("--exclude", action="append", default=[], metavar="RULE",
               help="highest:5 (losses), flops<1e19, loss>4; several times: in turn. The fit without is told"),
        option("--offset", type=float, help="added to the loss (default: 1 for a workdir of NEPA, else 0)"),
        option("--holdout", type=float, default=8.0, help="hold out budgets so many times beyond the rest (default: 8)"),
        option("--resample", type=whole(200, 100_000), default=200, help="drawings for the intervals"),
        option("--seed", type=whole(0, 2**31), default=0),
        option("--json", action="store_true"),
    )(fit)  # fmt: skip


def fit(args: Namespace) -> None:
    """Fits, writes and says it."""
    require_folder(args.out, "--out")
    if not args.holdout > 1:
        raise UserError(f"--holdout={args.holdout:g}: give a number above 1, such as 8")
    points, meaning = _points(args)
    from nepa_jax.scaling.analysis import analyse
    from nepa_jax.scaling.writing import write

    folder, names = Path(args.out), sorted(set(points.objective.tolist()))
    if args.error and len(names) < 2:
        raise UserError("--error: is for comparing objectives, and all runs are of one")
    parts = {name: points.take(points.objective == name) for name in names}
    analyses = {}
    for name, part in parts.items():
        analyses[name] = analyse(part, _asked(args, name))
        analyses[name].found["meaning"] = meaning
    compared = _compared(args, parts) if args.error else None
    files: list[Path] = []
    for name, analysis in analyses.items():
        place = folder / name if len(names) > 1 else folder
        files += write(place, f"Scaling law{f' of {name}' if name else ''}", analysis)
        if not args.json:
            _say(name, analysis)
    _end(args, analyses, compared, files)


def _points(args: Namespace) -> "tuple[Points, dict[str, Any]]":
    """All runs, and what their numbers mean."""
    if len(args.paths) == 1 and args.paths[0].lower().endswith(".csv"):
        from nepa_jax.scaling.points import read_csv

        samples = {} if args.samples else {"samples": "training FLOPs / 6 N: no column has them"}
        return read_csv(Path(args.paths[0]), _columns(args)), samples
    for name in ("samples", "unique", "objective"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name}: is for one CSV, and {args.paths[0]} is none; leave it out")
    from nepa_jax.scaling.workdirs import read_runs

    return read_runs(args.paths, args.error)


def _columns(args: Namespace) -> "Columns":
    from nepa_jax.scaling.points import Columns

    names = [name.strip() for name in args.columns.split(",")]
    if len(names) != 3 or not all(names):
        raise UserError(
            f"--columns={args.columns}: give three names, of parameters, FLOPs and loss"
        )
    return Columns(*names, args.samples, args.unique, args.error, args.objective)


def _asked(args: Namespace, objective: str) -> "Asked":
    from nepa_jax.scaling.analysis import Asked

    offset = args.offset
    if offset is None:
        from nepa_jax.scaling.points import RAISED

        offset = RAISED.get(objective, 0.0) if args.objective is None else 0.0
    return Asked(tuple(args.exclude), args.holdout, args.resample, offset, args.seed)


def _compared(args: Namespace, parts: "dict[str, Points]") -> dict[str, Any]:
    from nepa_jax.scaling.compare import compare
    from nepa_jax.scaling.points import excluding

    sound = {name: part.take(excluding(part, args.exclude)[0]) for name, part in parts.items()}
    return compare(sound, args.resample, args.seed)


def _end(
    args: Namespace,
    analyses: "dict[str, Analysis]",
    compared: dict[str, Any] | None,
    files: list[Path],
) -> None:
    """The comparison, the JSON of several objectives, and what was written."""
    from nepa_jax.base.errors import writing
    from nepa_jax.base.text import to_json
    from nepa_jax.scaling.writing import write_comparison

    folder = Path(args.out)
    whole: dict[str, Any] = next(iter(analyses.values())).found
    if len(analyses) > 1:
        whole = {"objectives": {name: each.found for name, each in analyses.items()}}
        if compared is not None:
            whole["comparison"] = compared
            files += write_comparison(folder, compared)
        with writing(folder):
            (folder / "fit.json").write_text(to_json(whole) + "\n")
    if args.json:
        print(to_json(whole))
        return
    pages = [file for file in files if file.name == "report.md"]
    print(f"done: {len(files)} files in {folder}")
    print(f"next: read {pages[-1]}")


def _say(name: str, analysis: "Analysis") -> None:
    """The law in a few lines."""
    found = analysis.found
    print(f"{name + ': ' if name else ''}L(N, D) = E + A / N^alpha + B / D^beta, 95 % in brackets")
    for estimator in ("surface", "huber"):
        each = found[estimator]
        words = [
            f"{key} {each[key]:.4g} [{each['interval'][key][0]:.4g}, {each['interval'][key][1]:.4g}]"
            for key in ("E", "alpha", "beta", "a")
        ]
        print(
            f"  {estimator:8} {', '.join(words)}, A {each['A']:.5g}, B {each['B']:.5g} ({each['points']} runs)"
        )
    held = found["holdout"]
    if "why_not" in held:
        print(f"  no hold-out: {held['why_not']}")
    else:
        print(
            f"  held out {held['points']} runs, {held['factor']:.1f} times in compute: mean error {held['mean']:.2%}, "
            f"max {held['max']:.2%}, signed {held['bias']:+.2%}; Huber {held['huber']['mean']:.2%}; the last budget's loss {held['baseline']:.2%}"
        )
    for run in found["excluded"][:10]:
        print(f"  excluded: {run['name']} ({run['rule']})")
    if len(found["excluded"]) > 10:
        print(f"  excluded: {len(found['excluded']) - 10} more, named in fit.json")
    if whole := found["without_exclusions"]:
        print(
            f"  with them kept: alpha {whole['huber']['alpha']:.4g}, beta {whole['huber']['beta']:.4g} by Huber"
        )
    if found["far"]:
        print(
            f"  far from the law: {', '.join(run['name'] for run in found['far'][:8])}; see the report"
        )
