"""Breaks the code on purpose, one mistake at a time, and says which tests see it.

    make mutants        (or: python tests/mutants.py [WORD …] for those whose name has all words)

Every mistake is made in a copy of the project, in a folder of its own. It names the tests that must
fail; one that passes is blind there, and the exit code is 1. The tests of equality compare two ways to
the same numbers, so their mistakes are made in one of the ways alone: on several devices, on several
processes, in microbatches, after a restart.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
COPIED = ("nepa_jax", "configs", "launch", "tests", "pyproject.toml", "README.md")

GOLDEN_NEPA = "tests/objectives/test_golden_nepa.py::"
GOLDEN_MAE = "tests/objectives/test_golden_mae.py::"
DRAWS = "tests/objectives/test_draws.py::"
CONTRACT = "tests/objectives/test_contract.py::"
MIX = "tests/objectives/test_mix.py::"
STEP = "tests/test_step.py::"
TRAIN = "tests/test_train.py::"
LOADER = "tests/data/test_loader.py::"
WATCH = "tests/objectives/test_watch.py::"
PICTURES = "tests/visualize/"
LOGGERS = "tests/run/loggers/"

LAYOUTS = "tests/test_mesh.py::test_every_layout_gives_the_losses_of_one_device"
PROCESSES = (
    "tests/test_processes.py::test_every_layout_on_several_processes_gives_the_losses_of_one_device"
)
ACCUMULATION = f"{STEP}test_accumulation_gives_the_same_step_as_the_whole_batch"
RESUME = f"{TRAIN}test_a_run_killed_three_times_ends_bitwise_as_an_undisturbed_one"

ON_ONE_DEVICE = "jax.sharding.get_abstract_mesh().size <= 1"


@dataclass(frozen=True)
class Mutant:
    """A mistake: in ``file``, ``new`` stands in place of ``old``, and every one of ``seen_by`` fails."""

    name: str
    file: str  # below nepa_jax
    old: str
    new: str
    seen_by: tuple[str, ...]


MUTANTS = (
    Mutant(
        "blocks left out",
        "models/layers.py",
        "x = block(x, rope, causal, images, drop)",
        "x = x + 0.0",
        (
            f"{GOLDEN_NEPA}test_every_hidden_state_matches",
            f"{GOLDEN_MAE}test_every_hidden_state_and_prediction_matches",
        ),
    ),
    Mutant(
        "blocks left out on several devices",
        "models/layers.py",
        "x = block(x, rope, causal, images, drop)",
        f"x = block(x, rope, causal, images, drop) if {ON_ONE_DEVICE} else x + 0.0",
        (f"{LAYOUTS}[nepa]", f"{LAYOUTS}[mae]"),
    ),
    Mutant(
        "blocks left out on several processes",
        "models/layers.py",
        "x = block(x, rope, causal, images, drop)",
        "x = block(x, rope, causal, images, drop) if jax.process_count() == 1 else x + 0.0",
        (PROCESSES,),
    ),
    Mutant(
        "causal mask left out on several devices",
        "models/attention.py",
        "attend_heads_first(q, k, v, causal)\n    form",
        f"attend_heads_first(q, k, v, causal and {ON_ONE_DEVICE})\n    form",
        (f"{LAYOUTS}[nepa]",),
    ),
    Mutant(
        "rotation left out on several devices",
        "models/layers.py",
        "if rope is not None:",
        f"if rope is not None and {ON_ONE_DEVICE}:",
        (f"{LAYOUTS}[nepa]",),
    ),
    Mutant(
        "every device gets the first rows",
        "mesh.py",
        "place = part.shards.index((index[axis].start or 0) // size)",
        "place = 0",
        ("tests/test_mesh.py::test_a_batch_keeps_its_rows_and_their_numbers", f"{LAYOUTS}[nepa]"),
    ),
    Mutant(
        "a host's rows twice",
        "run/setup.py",
        "part.index, part.count)",
        "part.index // 2, part.count)",
        (PROCESSES,),
    ),
    Mutant(
        "microbatches added, not averaged",
        "step.py",
        "jax.tree.map(lambda leaf: leaf / parts, total)",
        "total",
        (f"{ACCUMULATION}[nepa]", f"{ACCUMULATION}[mae]"),
    ),
    Mutant(
        "masks and dropped branches by the place in the microbatch",
        "objectives/base.py",
        'batch["row"])',
        'jnp.arange(len(batch["row"])))',
        (f"{ACCUMULATION}[nepa]", f"{ACCUMULATION}[mae]"),
    ),
    Mutant(
        "the same masks and branches at every step",
        "step.py",
        'jax.random.fold_in(named_key(jax.random.key(config.run.seed), "step"), state.step)',
        'named_key(jax.random.key(config.run.seed), "step")',
        ("tests/base/test_keys.py::test_keys_of_steps_are_no_keys_of_the_initialisation",),
    ),
    Mutant(
        "the same branches dropped in every layer",
        "models/layers.py",
        "2 * index + which",
        "which",
        (f"{DRAWS}test_branches_of_all_images_and_layers_are_dropped_independently",),
    ),
    Mutant(
        "coordinates not changed in training",
        "objectives/nepa.py",
        'vit.rope(grid, named_key(key, "rope"))',
        "vit.rope(grid)",
        (f"{DRAWS}test_nepa_sees_other_coordinates_at_each_step",),
    ),
    Mutant(
        "target without its stop-gradient",
        "objectives/nepa.py",
        "targets = jax.lax.stop_gradient(targets)",
        "targets = targets + 0.0",
        (f"{GOLDEN_NEPA}test_loss_and_gradients_match_with_the_last_patch_left_out",),
    ),
    Mutant(
        "decoder gets its tokens in the order of noise",
        "models/masking.py",
        "ids_restore = jnp.argsort(ids_shuffle, axis=1)",
        "ids_restore = ids_shuffle",
        (f"{GOLDEN_MAE}test_masks_match", f"{GOLDEN_MAE}test_loss_and_gradients_match"),
    ),
    Mutant(
        "LayerScale decays",
        "optim.py",
        '"layer_scale1", "layer_scale2")',
        ")",
        (
            f"{GOLDEN_NEPA}test_weight_decay_groups_match",
            f"{GOLDEN_NEPA}test_twenty_adamw_steps_follow_the_official_trajectory",
        ),
    ),
    Mutant(
        "warm-up one step longer",
        "optim.py",
        "steps, optim = config.schedule.warmup_steps, config.optim",
        "steps, optim = config.schedule.warmup_steps + 1, config.optim",
        (f"{GOLDEN_NEPA}test_twenty_adamw_steps_follow_the_official_trajectory",),
    ),
    Mutant(
        "layer decay of MAE that is NEPA's",
        "optim.py",
        '- int(place.partition(" ")[2]) + offset',
        '- int(place.partition(" ")[2])',
        ("tests/test_optim.py::test_every_step_has_the_released_learning_rate_in_every_layer",),
    ),
    Mutant(
        "padding counts in an accuracy",
        "run/validation.py",
        'values[found["index"] >= 0]',
        'values[found["index"] >= -1]',
        ("tests/test_finetune.py::test_every_image_counts_once_whatever_the_batch",),
    ),
    Mutant(
        "average that follows too fast",
        "step.py",
        "a + (1.0 - decay) * (m - a)",
        "a + decay * (m - a)",
        (
            f"{STEP}test_the_average_follows_the_model",
            f"{STEP}test_an_average_keeps_what_is_constant_and_follows_the_closed_form",
        ),
    ),
    Mutant(
        "average that shrinks",
        "step.py",
        "a + (1.0 - decay) * (m - a)",
        "decay * a + (1.0 - decay) * m",
        (f"{STEP}test_an_average_keeps_what_is_constant_and_follows_the_closed_form",),
    ),
    Mutant(
        "the weights of step 0 stay in the average",
        "step.py",
        "partial(jnp.where, state.kept == 0)",
        "partial(jnp.where, False)",
        (f"{STEP}test_the_average_follows_the_model",),
    ),
    Mutant(
        "CutMix's box of another timm",
        "objectives/mix.py",
        "(side + BOXES[box]) // 2",
        "(side + 1) // 2",
        (f"{MIX}test_mixup_and_cutmix_are_timms", f"{MIX}test_the_two_boxes_differ"),
    ),
    Mutant(
        "what is mixed depends on the microbatch",
        "objectives/mix.py",
        "jnp.minimum(rows, partners(rows))",
        "jnp.arange(len(rows))",
        (
            f"{MIX}test_microbatches_are_mixed_as_the_whole_batch_is",
            f"{MIX}test_accumulation_gives_the_gradients_of_the_whole_batch",
        ),
    ),
    Mutant(
        "erased pixels stay within black and white",
        "objectives/erasing.py",
        "jax.random.normal(noise_key, image.shape)",
        "jnp.clip(jax.random.normal(noise_key, image.shape), -1, 1)",
        (
            "tests/objectives/test_erasing.py::test_noise_is_standard_normal_after_the_models_normalisation",
        ),
    ),
    Mutant(
        "the same drop path in all layers",
        "models/layers.py",
        "jnp.linspace(0.0, config.drop_path_rate, config.depth)",
        "jnp.full(config.depth, config.drop_path_rate)",
        ("tests/models/test_drop_path.py::test_drop_path_is_the_released_one",),
    ),
    Mutant(
        "an update that is not finite enters the weights",
        "step.py",
        "jnp.stack([loss, grad_norm, update_norm])",
        "jnp.stack([loss, grad_norm])",
        (
            f"{STEP}test_an_update_that_is_not_finite_changes_nothing_though_loss_and_gradient_are",
            f"{TRAIN}test_a_run_of_nothing_but_nan_is_not_done[update]",
        ),
    ),
    Mutant(
        "a teacher that moves though the step is thrown away",
        "step.py",
        "lost = counted(state)",
        "lost = replace(counted(state), extra=kept.extra)",
        (f"{CONTRACT}test_a_step_that_is_thrown_away_moves_neither_teacher_nor_centre",),
    ),
    Mutant(
        "a teacher that forgets the weights a run begins with",
        "step.py",
        "init_extra(config, model)",
        "init_extra(config, objective.init_model(config, nnx.Rngs(config.run.seed)))",
        (f"{CONTRACT}test_a_run_that_begins_with_given_weights_has_a_teacher_of_these",),
    ),
    Mutant(
        "every epoch in the same order",
        "data/order.py",
        'stable_hash("order", seed, epoch)',
        'stable_hash("order", seed)',
        (f"{LOADER}test_each_epoch_is_a_permutation_and_no_two_agree",),
    ),
    Mutant(
        "data from the beginning after a restart",
        "train.py",
        "batch = data.batch(step)",
        "batch = data.batch(step - steps.start)",
        (RESUME,),
    ),
    Mutant(
        "weights in place of the average after a restart",
        "checkpoint/saving.py",
        'with_leaves(target.ema, leaves["ema"])',
        'with_leaves(target.ema, leaves["model"])',
        (RESUME,),
    ),
    Mutant(
        "attention drawn without its scale",
        "visualize/attention.py",
        "* (q.shape[-1] ** -0.5)",
        "* 1.0",
        (f"{PICTURES}test_attention.py::test_the_weights_give_the_models_own_output",),
    ),
    Mutant(
        "a causal query that is drawn looking behind itself",
        "visualize/attention.py",
        "jnp.where(causal & later, -jnp.inf, scores)",
        "scores",
        (
            f"{PICTURES}test_attention.py::test_the_weights_give_the_models_own_output",
            f"{PICTURES}test_attention.py::test_rows_sum_to_one_and_a_causal_query_sees_nothing_behind_it",
        ),
    ),
    Mutant(
        "visible patches that are not pasted",
        "visualize/reconstruct.py",
        "np.where(removed[0], fill, image)",
        "np.where(removed[0] | True, fill, image)",
        (
            f"{PICTURES}test_reconstruct.py::test_exactly_the_asked_share_is_removed_and_the_rest_is_the_image",
        ),
    ),
    Mutant(
        "an image that is its own neighbour",
        "visualize/neighbors.py",
        "if number is not None",
        "if number == -1",
        (
            f"{PICTURES}test_neighbors.py::test_neighbours_are_those_of_the_largest_cosine_without_the_query_itself",
            f"{PICTURES}test_verb.py::test_neighbours_are_those_of_the_encoder_and_never_the_image_itself",
        ),
    ),
    Mutant(
        "colours whose sign does not follow the layer before",
        "visualize/pca.py",
        "(values * before).sum(axis=0) < 0",
        "(values * before).sum(axis=0) > 0",
        (
            f"{PICTURES}test_pca.py::test_a_layer_that_only_turns_the_one_before_round_keeps_its_colours",
        ),
    ),
    Mutant(
        "steps that are done again sent to a logger again",
        "run/loggers/resuming.py",
        "self._had = self._has = had",
        "self._had, self._has = Mark(), had",
        (
            f"{LOGGERS}test_resuming.py::test_a_run_goes_on_under_its_id_and_no_step_comes_twice",
            f"{LOGGERS}test_resuming.py::test_pictures_come_once_too",
        ),
    ),
    Mutant(
        "a loop that waits for its slowest logger",
        "run/loggers/background.py",
        "self._calls.put_nowait(call)",
        "self._calls.put(call, timeout=3)",
        (f"{LOGGERS}test_background.py::test_a_slow_tool_holds_nothing_up_and_is_told_of_once",),
    ),
    Mutant(
        "a reconstruction without the patch's mean and contrast",
        "objectives/mae.py",
        "    if model.norm_pix_loss:\n        predictions = denorm",
        "    if False:\n        predictions = denorm",
        ("tests/objectives/test_pictured.py::test_a_perfect_prediction_rebuilds_the_image",),
    ),
    Mutant(
        "heads that watch get images in another order than labels",
        "step.py",
        "jnp.moveaxis(parts, 0, 2).reshape",
        "jnp.moveaxis(parts, 0, 1).reshape",
        (f"{WATCH}test_microbatches_give_the_heads_every_image_with_its_label",),
    ),
    Mutant(
        "heads that diverge are kept",
        "objectives/watch.py",
        "partial(jnp.where, finite), after, heads",
        "partial(jnp.where, True), after, heads",
        (f"{WATCH}test_heads_that_diverge_stay_as_they_were_and_change_nothing_else",),
    ),
)


def applied(mutant: Mutant, root: Path) -> str:
    """The file's text with the mistake. Raises ValueError unless the old text is there once."""
    text = (root / "nepa_jax" / mutant.file).read_text()
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(
            f"{mutant.name}: {mutant.old!r} is {count} times in {mutant.file}, not once"
        )
    return text.replace(mutant.old, mutant.new)


def failures(copy: Path, tests: tuple[str, ...]) -> dict[str, str]:
    """Each test that fails in the copy, with pytest's short reason."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "--durations=0", "-rf", *tests]
    ours = os.environ | {"PYTHONPATH": str(copy)}  # for the processes that tests start
    done = subprocess.run(command, cwd=copy, env=ours, capture_output=True, text=True)
    if done.returncode > 1:  # nothing ran, or not all of it
        raise RuntimeError(
            f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}"
        )
    return dict(re.findall(r"^FAILED (\S+)(?: - (.*))?$", done.stdout, re.MULTILINE))


def blind(mutant: Mutant, failed: dict[str, str]) -> list[str]:
    """The tests that should have failed and did not; of one with parameters any will do."""
    return [test for test in mutant.seen_by if not any(name.startswith(test) for name in failed)]


def try_out(mutant: Mutant, copy: Path) -> bool:
    """Makes the mistake, runs its tests, takes it back; prints and returns whether all saw it."""
    path = copy / "nepa_jax" / mutant.file
    right = path.read_text()
    began = time.perf_counter()
    path.write_text(applied(mutant, copy))
    try:
        failed = failures(copy, mutant.seen_by)
    finally:
        path.write_text(right)
    missed = blind(mutant, failed)
    print(
        f"{'SURVIVES' if missed else 'seen'}: {mutant.name} ({time.perf_counter() - began:.0f} s)"
    )
    for test in missed:
        print(f"    not by {test}")
    for name, reason in failed.items():
        print(f"    by {name}: {reason[:80]}", flush=True)
    return not missed


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = PROJECT / name
            to = shutil.copytree if source.is_dir() else shutil.copy
            to(source, copy / name)
        tests = tuple(sorted({test for mutant in chosen for test in mutant.seen_by}))
        if failed := failures(copy, tests):
            print(f"these fail without any mistake: {', '.join(failed)}")
            return 1
        seen = [try_out(mutant, copy) for mutant in chosen]
    print(f"{sum(seen)} of {len(seen)} mistakes seen")
    return 0 if seen and all(seen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
