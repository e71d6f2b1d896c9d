"""Which alarms a run's log gives, and when: those that it printed while it went on."""

from typing import Any

import numpy as np

from nepa_jax.objectives.base import OURS, Alarm, load_objective
from nepa_jax.run.log import Log
from nepa_jax.run.report import ALARMS


def rung(log: Log, objective: str, notes: list[str]) -> list[dict[str, Any]]:
    """The alarms that rang, in order of their first step.

    Args:
        log: of the run.
        objective: its name in the config. To import one is to run it, so that alarms of modules that
            are not this package's are left out.
        notes: gets a line of what is left out.
    """
    alarms = list(ALARMS)
    if OURS.fullmatch(objective):
        alarms += getattr(load_objective(objective), "alarms", ())
    elif objective:
        notes.append(f"alarms of {objective} are not shown: it is no module of nepa_jax.objectives")
    found = []
    for alarm in alarms:
        steps = log.steps[
            _rings(alarm, log) & (log.steps > 1)
        ]  # the first waits for the first batch
        if len(steps):
            first, last = int(steps[0]), int(steps[-1])
            found.append({"text": alarm.text, "first": first, "last": last, "count": len(steps)})
    return sorted(found, key=lambda alarm: alarm["first"])


def _rings(alarm: Alarm, log: Log) -> np.ndarray:
    """At which rows: bool [n]. All rows at once where the alarm's comparison can be of arrays."""
    try:
        return np.broadcast_to(np.asarray(alarm.rings(log.columns), bool), log.steps.shape)
    except KeyError:  # of a metric that this run does not log
        return np.zeros(log.steps.shape, bool)
    except (TypeError, ValueError):
        return np.array([_rings_at(alarm, log, row) for row in range(len(log.steps))], bool)


def _rings_at(alarm: Alarm, log: Log, row: int) -> bool:
    numbers = {key: float(column[row]) for key, column in log.columns.items()}
    try:
        return bool(alarm.rings({k: v for k, v in numbers.items() if np.isfinite(v)}))
    except KeyError:
        return False
