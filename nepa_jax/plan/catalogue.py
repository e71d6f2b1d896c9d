"""What there is to choose from: recipes with their sizes, parameters and cost."""

from pathlib import Path

from nepa_jax.config import CONFIGS, load_config, recipe_files, recipe_module, resolve
from nepa_jax.objectives.base import load_objective

COLUMNS = "{:24} {:>6} {:>5} {:>5} {:>6} {:>6} {:>12} {:>9} {:>6} {:>10}"
HEADER = ("config", "width", "depth", "heads", "px", "tokens", "parameters", "GFLOP", "batch", "length")  # fmt: skip
IMAGES = 1_281_167  # of ImageNet-1k, for lengths in epochs


def print_catalogue() -> None:
    """Every recipe, a line for each of the arguments it lists."""
    print(COLUMNS.format(*HEADER))
    for path in recipe_files():
        for argument in recipe_module(path).ARGUMENTS:
            print(_row(path, argument), flush=True)
    print(
        "\nGFLOP: of a training step, per image. tokens: through the encoder, per image. parameters: of all "
        "that is trained,\nan MAE's decoder too. px: image side / patch side. Other patch sides go too: "
        "nepa.py:B/14."
    )
    for path in recipe_files():
        module = recipe_module(path)
        presets = getattr(module, "PRESETS", ())
        print(f"\n{path.name}: {module.__doc__.strip().splitlines()[0]}")
        if presets:
            print(
                f"  presets: {', '.join(presets)}; the first unless named, as in "
                f"{path.name}:{module.ARGUMENTS[0]},{presets[-1]}"
            )
    print(f"\nevery key with its default: {CONFIGS / 'base.py'}")


def _row(path: Path, argument: str) -> str:
    config = load_config(f"{path}:{argument}")
    length = next(key for key in config.schedule if key.startswith("total_"))
    length = f"{config.schedule[length]:g} {length.removeprefix('total_')}"
    config = resolve(config, IMAGES, "tpu")
    model, facts = config.model, load_objective(config.objective.name).describe(config)
    gflop = facts.flops / 1e9
    return COLUMNS.format(
        f"configs/{path.name}:{argument}", model.embed_dim, model.depth, model.num_heads,
        f"{model.image_size[0]}/{model.patch_size}", facts.tokens, f"{facts.parameters:,}",
        f"{gflop:,.1f}" if gflop >= 1 else f"{gflop:.3g}", config.data.batch_size, length,
    )  # fmt: skip
