"""Pretraining: set up, loop, finish. The same command resumes."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import jax
from ml_collections import ConfigDict

from nepa_jax.base.waiting import GivenUp
from nepa_jax.hosts.agree import say
from nepa_jax.hosts.preemption import Preemption
from nepa_jax.run.feed import DeviceBatches
from nepa_jax.run.hooks import Hook, ProfileRequest
from nepa_jax.run.memory import memory_is_told
from nepa_jax.run.setup import set_up
from nepa_jax.step import TrainState, Update


def pretrain(config: ConfigDict, workdir: str, stop_step: int | None = None) -> TrainState:
    """Runs a config to its last step, from the newest sound checkpoint in ``workdir`` if there is one.

    Asked to stop by SIGTERM or a notice of the platform, it saves and returns early.

    Args:
        config: as a recipe gives it, overrides applied, units not yet resolved.
        workdir: gets ``config.json``, ``metrics.jsonl``, ``goodput.json``, ``checkpoints/``, and
            ``DONE`` after the last step.
        stop_step: stop early, at a checkpoint of this step, without changing the schedule.

    Raises:
        UserError: a mistake in the config, the data set or the workdir, before any compilation; or
            later, that checkpoints cannot be saved or images not be read.
        RunDiverged: too many steps in a row had to be thrown away, or the last one.
    """
    with ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        profile = stack.enter_context(ProfileRequest())
        run = set_up(config, workdir, stack)
        total = run.config.schedule.total_steps
        state = run.initial_state()
        start, stop = int(state.step), min(total, stop_step or total)
        alone = not jax.distributed.is_initialized()  # the others would wait for this one
        if start >= stop:
            say(f"nothing to do: step {start} of {stop} is reached")
            run.mark_done(state)
            return state
        try:
            update = run.compiled_update(lambda: alone and preemption.noticed)
        except GivenUp:
            say(
                f"stopped while compiling, at step {start}: nothing is lost; the same command goes on"
            )
            return state
        data = stack.enter_context(DeviceBatches(run.loader, run.mesh))
        hooks = stack.enter_context(run.hooks(data, start, profile))
        with memory_is_told(run.config):
            state = train(state, update, data, hooks, range(start, stop), preemption.requested)
        for hook in hooks:
            hook.close(state)
        done = int(state.step)
        run.account(done)
        run.mark_done(state)
        if done < stop:
            say(f"preempted: saved step {done}; the same command goes on from there")
        return state


def train(
    state: TrainState,
    update: Update,
    data: DeviceBatches,
    hooks: Sequence[Hook],
    steps: range,
    stop_requested: Callable[[int], bool],
) -> TrainState:
    """The loop. Nothing in it waits for the device; see MetricsHook for when metrics are read."""
    for step in steps:
        batch = data.batch(step)
        with jax.transfer_guard("disallow"):
            state, metrics = update(state, batch)
        for hook in hooks:
            hook(step + 1, state, metrics)
        if stop_requested(step + 1):
            break
    return state
