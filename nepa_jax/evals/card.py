"""One page on what an encoder is worth, from the reports of its probes: Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nepa_jax.evals.results import SCORES, Report

# What a probe's number says, and what it does not.
MEANINGS = {
    "knn": "how near images of a class lie; nothing is trained and nothing chosen",
    "logreg": "what a linear map finds, fitted to its end",
    "linear": "what a linear map finds, trained as MAE's paper does",
    "attentive": "what is found when the tokens to read may be chosen: the pair of `linear`",
    "fewshot": "what few labels are enough for",
    "rank": "how many dimensions are in use; high is needed, and not enough",
    "spatial": "how tokens follow the place of things; goes with generation, not with classes",
}
PER_CENT = ("top1", "top5", "miou", "held_out")


def text_of(reports: Sequence[Report], left_out: Mapping[str, str]) -> str:
    """The page. The picture beside it is ``card.png``.

    Args:
        reports: of one encoder, one for each probe.
        left_out: probes that could not be run, and why.
    """
    return "\n".join([
        *_head(reports[0]),
        "",
        "| probe | metric | number | layer | untrained, same layer | chance | last layer | best on test |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_row, reports),
        "",
        "![by layer](card.png)",
        "",
        "## How to read it",
        "",
        *(f"- **{name}**: {MEANINGS[name]}." for name in _names(reports) if name in MEANINGS),
        "- **number**: chosen as its protocol says, never on the test split. **best on test** is the "
        "highest there, over all layers and settings: it is no number to report.",
        "- **untrained**: the same architecture with fresh weights of the same seed. What it reaches "
        "is no merit of pretraining.",
        *_warnings(reports[0]),
        "",
        "## Protocols",
        "",
        *(line for report in reports for line in _protocol(report)),
        *(f"- `{name}` was left out: {why}" for name, why in left_out.items()),
        "",
    ])  # fmt: skip


def _names(reports: Sequence[Report]) -> list[str]:
    return [report["probe"] for report in reports]


def _head(report: Report) -> Iterator[str]:
    model, step = report["model"], report["step"]
    height, width = report["transform"]["image_size"]
    yield f"# What the features of `{report['weights']}` are worth"
    yield ""
    yield (
        f"{report['objective'].rpartition('.')[2]}, {model['depth']} layers of width "
        f"{model['embed_dim']}, patches of {model['patch_size']} px"
        + (f", step {step:,}" if step is not None else "")
        + f"; weights `{report['checksum']}`{', averaged' if report['average'] else ''}."
    )
    yield (
        f"Images of `{report['data']}`: probes learn from `{report['train_split']}` and are tested "
        f"on `{report['test_split']}`; {height} x {width} px, {report['attention']} attention."
    )


def _row(report: Report) -> str:
    metric, number = report["metric"], report["number"]
    cells = (
        report["probe"],
        metric,
        f"**{shown(metric, number[metric])}**",
        number.get("layer", ""),
        shown(metric, (report["untrained"] or {}).get(metric)),
        shown(metric, report["chance"]),
        shown(metric, report["by_layer"][-1][metric]),
        shown(metric, (report["best_on_test"] or {}).get(metric)) if metric in PER_CENT else "",
    )
    return f"| {' | '.join(map(str, cells))} |"


def shown(metric: str, value: float | None) -> str:
    """A score for people: fractions in per cent."""
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if metric in PER_CENT else f"{value:.4g}"


def _warnings(report: Report) -> Iterator[str]:
    if report["objective"].endswith(".nepa"):
        yield (
            "- **The last layer of NEPA predicts the next patch's embedding** and is no summary of "
            "the image: read a middle layer, and report which."
        )


def _protocol(report: Report) -> Iterator[str]:
    number = {
        key: value
        for key, value in report["number"].items()
        if key not in (*SCORES, report["metric"], "layer", "pool")
    }
    yield f"- `{report['probe']}`: {report['chosen']}"
    yield f"  - the number: {_words(number)}" if number else "  - the number: as it is"
    yield f"  - protocol: {_words(report['protocol'])}"


def _words(values: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{key} {_short(value)}" for key, value in values.items() if not isinstance(value, Mapping)
    )


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        few = value if len(value) <= 8 else [value[0], "…", value[-1]]
        return ", ".join(map(_short, few))
    return str(value)
