"""The report: what a paper on a scaling law has to state (checklist of arXiv 2502.18969), answered."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]


def text_of(title: str, found: Found, figures: Sequence[str]) -> str:
    """Markdown of one fit.

    Args:
        title: of the page.
        found: as in fit.json.
        figures: names of pictures beside it.
    """
    parts = (
        [f"# {title}", ""],
        _law(found),
        _holdout(found["holdout"]),
        _excluded(found),
        _optima(found["optimum"]),
        _isoflop(found["isoflop"], found["surface"]),
        _repeats(found["repeats"]),
        _checklist(found),
        ["## Figures", "", *(f"![{name}]({name})\n" for name in figures)],
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def _law(found: Found) -> Iterator[str]:
    yield from (
        "## The law",
        "",
        "L(N, D) = E + A / N^alpha + B / D^beta; N parameters, D samples seen.",
        "",
    )
    yield "| | squared error | 95 % | Huber, log loss | 95 % |"
    yield "| --- | --- | --- | --- | --- |"
    surface, huber = found["surface"], found["huber"]
    for name in ("E", "A", "B", "alpha", "beta", "a", "b", "gamma"):
        cells = (f"{each[name]:.5g} | {span(each['interval'][name])}" for each in (surface, huber))
        yield f"| {name} | {' | '.join(cells)} |"
    yield f"| runs | {surface['points']} | | {huber['points']} | |"
    yield f"| R² | {surface['r2']:.4f} | | {huber['r2']:.4f} | |"
    yield ""
    yield "a, b: the cheapest N ~ C^a and D ~ C^b; gamma: its reducible loss ~ C^-gamma."
    yield ""
    compute = found["compute"]
    yield f"L(C) through the best runs of {compute['budgets']} budgets: {compute['c']:.4g} + {compute['a']:.4g} C^-{compute['g']:.3g}."
    yield ""


def span(ends: Sequence[float] | None) -> str:
    """An interval in words."""
    return "none" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"


def _holdout(held: Found) -> Iterator[str]:
    yield from ("## Hold-out", "")
    if "why_not" in held:
        yield from (f"None: {held['why_not']}.", "")
        return
    yield (
        f"Fitted to runs below {held['flops_from']:.3g} FLOPs, asked of the {held['points']} others, up to "
        f"{held['factor']:.1f} times the compute of any fitted one:"
    )
    yield from ("", "| | mean error | largest | signed mean |", "| --- | --- | --- | --- |")
    rows = {
        "squared error": held["surface"],
        "Huber": held["huber"],
        "baseline: the last budget's best loss": held["baselines"]["last_budget"],
        "baseline: a power law in compute alone": held["baselines"]["power_law_in_compute"],
    }
    for name, errors in rows.items():
        yield f"| {name} | {errors['mean']:.2%} | {errors['max']:.2%} | {errors['bias']:+.2%} |"
    yield from (
        "",
        f"{held['inside']:.0%} of these runs lie inside their 95 % intervals (runs resampled, and a run's own residual added): well below 95 % means that the law or the noise changes with scale, which no interval from smaller runs can know.",
        "",
    )


def _excluded(found: Found) -> Iterator[str]:
    yield from ("## Excluded runs", "")
    if not found["excluded"]:
        yield "None."
    for run in found["excluded"]:
        loss = "none" if run["loss"] is None else f"{run['loss']:.5g}"
        yield f"- {run['name']}: {run['rule']} (N {run['parameters']:.3g}, C {run['flops']:.3g}, loss {loss})"
    if whole := found["without_exclusions"]:
        for name, law in whole.items():
            changed = ", ".join(
                f"{key} {found[name][key]:.4g} → {law[key]:.4g}" for key in ("E", "alpha", "beta")
            )
            yield f"- with all {law['points']} kept, {name}: {changed}"
    if found["far"]:
        names = ", ".join(f"{run['name']} ({run['times']:+.0f})" for run in found["far"][:12])
        yield ""
        yield f"Fitted, though more than ten times as far from the law as usual (times in brackets): {names}. Such runs can decide an exponent; --exclude names a rule, and both fits are told."
    yield ""


def _optima(rows: Sequence[Found]) -> Iterator[str]:
    yield from (
        "## The cheapest way to spend a budget",
        "",
        "| FLOPs | parameters | 95 % | samples | loss | 95 % |",
        "| --- | --- | --- | --- | --- | --- |",
    )
    for row in rows:
        beyond = " (extrapolated)" if row["extrapolated"] else ""
        spans = row["interval"]
        yield f"| {row['flops']:.2e}{beyond} | {row['parameters']:.3g} | {span(spans['parameters'])} | {row['samples']:.3g} | {row['loss']:.4g} | {span(spans['loss'])} |"
    yield ""


def _isoflop(found: Found, surface: Found) -> Iterator[str]:
    yield from ("## IsoFLOP parabolas", "")
    if not found["budgets"]:
        yield from ("None: no budget has four sizes.", "")
        return
    yield "A picture, not the fit: even without noise a parabola's minimum is not the law's, and more so the more alpha and beta differ and the wider the sizes are spread. `bias` is that error, on these very sizes."
    yield from ("", "| FLOPs | lowest at parameters | bias | flag |", "| --- | --- | --- | --- |")
    for each in found["budgets"]:
        lowest = "" if each["parameters"] is None else f"{each['parameters']:.3g}"
        bias = "" if each["bias"] is None else f"{each['bias']:+.1%}"
        yield f"| {each['flops']:.2e} | {lowest} | {bias} | {each['flag']} |"
    if found["a"] is not None:
        yield from (
            "",
            f"N ~ C^{found['a']:.3f} through the minima without a flag; the law says {surface['a']:.3f}.",
        )
    yield ""


def _repeats(found: Found | None) -> Iterator[str]:
    yield from ("## Unique images and repeats", "")
    if found is None:
        yield from (
            "The runs do not say how many images were different, or none was seen twice. L(N, D) takes every sample as fresh.",
            "",
        )
        return
    edge = " (at the edge of what was searched: not determined)" if found["at_the_edge"] else ""
    yield (
        f"Up to {found['most_epochs']:.3g} epochs; {found['share_over_4_epochs']:.0%} of runs beyond 4. With D' = U + U R (1 − "
        f"exp(−(D/U − 1)/R)) for D, R = {found['R']:.3g}{edge}: squared error {found['squared_error']:.4g}, against "
        f"{found['squared_error_all_fresh']:.4g} with every sample as fresh."
    )
    yield ""


def _checklist(found: Found) -> Iterator[str]:
    facts, choices, told = found["set"], found["choices"], found.get("meaning", {})
    yield from ("## Checklist", "", "| question | answer |", "| --- | --- |")
    ends = {
        key: span(facts[key])
        for key in ("parameters", "flops", "samples", "samples_per_parameter", "its_range")
    }
    answers = {
        "form of the law": "L = E + A/N^alpha + B/D^beta, E free and not below 0",
        "what N counts": told.get("parameters", "the column's own definition"),
        "what D counts": told.get("samples", "the column's own definition"),
        "how FLOPs are counted": told.get("flops", "the column's own definition"),
        "FLOPs per parameter and sample": f"{facts['flops_per_parameter_and_sample']:.4g}, of runs {ends['its_range']}; optima use the mean",
        "which loss": told.get("loss", "the column's own definition")
        + (f"; plus {choices['offset']:g}" if choices["offset"] else ""),
        "runs, sizes": f"{facts['runs']}, {facts['sizes']}",
        "range of N, D, C": f"{ends['parameters']}; {ends['samples']}; {ends['flops']}",
        "samples per parameter": ends["samples_per_parameter"],
        "epochs": span(facts["epochs"]) if facts["epochs"] else "not known",
        "learning rate, batch, schedule": "not in these points: state how each was chosen at every size, and whether the schedule ends where the run does",
        "seeds": "not in these points: state them, and the spread at the smallest cell",
        "objective of the fit": "squared error of the loss; beside it Huber of the log loss, delta 1e-3",
        "optimiser and starts": "variable projection over a grid of 16 × 16 exponents, then closer; Huber: reweighted least squares from 19 starts, then L-BFGS",
        "weights of runs": "all alike",
        "intervals": f"95 %, percentiles of {choices['resampled']} drawings of runs with replacement, seed {choices['seed']}",
        "exclusions": f"{len(found['excluded'])}; rules: {', '.join(choices['exclude']) or 'only runs without a finite loss'}",
        "extrapolation tested": _tested(found["holdout"]),
    }
    yield from (f"| {question} | {answer} |" for question, answer in answers.items())
    yield from ("", "All points, excluded ones too, stand in points.csv.", "")


def _tested(held: Found) -> str:
    return (
        "no"
        if "why_not" in held
        else f"{held['factor']:.1f} times in compute, mean error {held['mean']:.2%}"
    )


def comparison_text(found: Found) -> str:
    """Markdown of objectives beside each other."""
    names = list(found["error"])
    lines = [
        "# Objectives at equal FLOPs", "",
        "Losses of different objectives are of different things; what is compared is the downstream error of each one's best runs, c + a C^-g, only where all were trained.", "",
        f"| FLOPs | {' | '.join(names)} | lowest |", f"| --- |{' --- |' * (len(names) + 1)}",
    ]  # fmt: skip
    for i, flops in enumerate(found["flops"]):
        cells = [f"{found['error'][n][i]:.4g} ({span(found['interval'][n][i])})" for n in names]
        lines.append(f"| {flops:.3g} | {' | '.join(cells)} | {found['best'][i]} |")
    return "\n".join(
        [
            *lines,
            "",
            "![comparison](comparison.png)",
            "",
            *(f"- [{n}]({n}/report.md)" for n in names),
            "",
        ]
    )
