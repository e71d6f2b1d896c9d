"""Semantic segmentation on ADE20K: a pretrained encoder under UPerNet, all of it trained.

    nepa-jax finetune --config=configs/segment.py:nepa,B/14 --config.run.init_from=W \\
        --config.data.path=DIR --workdir=W2
    nepa-jax finetune --config=configs/segment.py:mae,L/16 --config.run.init_from=EXPORT ...

The argument is METHOD,SIZE/PATCH. The recipe is mmsegmentation's for MAE (open-mmlab/mmsegmentation,
configs/mae, UPerNet on MAE-B: AdamW 1e-4, layer decay .65, drop path .1, 512 px, batch 16, 160,000
iterations on 8 GPUs of 2 images each); the papers say how long and how large, and no rate:
  nepa  arXiv 2512.16922, appendix: 512 px, batch 16, 160,000 iterations, mmsegmentation's defaults,
        bidirectional attention
  mae   arXiv 2111.06377, appendix A.4: batch 16, 100 epochs, with relative position bias, which ours has
        not: positions are the table alone
For L nothing was released: layer decay .75 and drop path .2, as both methods classify with it.
Patches of 14 do not fill 512 px: the side is 518.

Expect mIoU, in per cent (docs/finetune.md has the sources):
  nepa  B 48.3, L 54.0 (paper, Table 3)
  mae   B 48.1, L 53.6 (paper, Table 5); B 48.13 by mmsegmentation's own run
"""

from ml_collections import ConfigDict

from nepa_jax.config import base_config, parse_arg, parse_choice

ARGUMENTS = ("nepa,B/14", "nepa,L/14", "mae,B/16", "mae,L/16")

METHODS = ("nepa", "mae")
DEFAULT_VARIANT = {"nepa": "B/14", "mae": "B/16"}
# The recipe knows two sizes: which one stands for each.
RECIPE_OF = {"Ti": "B", "S": "B", "B": "B", "L": "L", "H": "L", "g": "L"}


def get_config(arg: str = "") -> ConfigDict:
    first, _, rest = arg.partition(",")
    method = parse_choice(first, METHODS)
    variant, _ = parse_arg(rest, default=DEFAULT_VARIANT[method], presets=("release",))
    base = RECIPE_OF[variant.name.partition("/")[0]] == "B"
    config = base_config()
    config.model.update(variant.fields)
    patch = config.model.patch_size
    config.model.update(
        image_size=-(-512 // patch) * patch, drop_path_rate=0.1 if base else 0.2, final_norm=False
    )
    config.objective = dict(
        name="nepa_jax.objectives.segment",
        num_classes=150,
        causal=False,
        channels=config.model.embed_dim,  # mmsegmentation's for MAE; its default is 512
        aux_channels=256,
        dropout=0.1,
    )
    config.data.update(
        batch_size=16, masks=True, crop="scale_jitter", max_class_share=0.75, augment="photometric",
        interpolation="bilinear",
    )  # fmt: skip
    config.optim.update(b2=0.999, weight_decay=0.05, layer_decay_offset=1, decay_tokens=False)
    with config.ignore_type():
        {"nepa": nepa, "mae": mae}[method](config)
        config.optim.update(lr=1e-4, shape="linear", layer_decay=0.65 if base else 0.75)
        del config.schedule.total_epochs, config.schedule.warmup_epochs
        config.schedule.update(total_steps=160_000, warmup_steps=1500)
        config.evals.update(validate=True, every_steps=16_000)
        config.checkpoint.update(keep_best=True, every_steps=4000)
    return config


def nepa(config: ConfigDict) -> None:
    """The encoder of the released fine-tuning."""
    config.model.update(
        pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3, init="normal", norm_eps=1e-12,
        qk_norm=True, qk_norm_affine=True, rope_base=100.0, rope_rescale=2.0, layer_scale_init=1e-5,
    )  # fmt: skip


def mae(config: ConfigDict) -> None:
    """The encoder of the released fine-tuning, whose table is resized."""
    config.model.update(posemb="learned", init="xavier", norm_eps=1e-6)
