"""Small NEPA and MAE encoders on CIFAR-10, or any images of 32 px: studies that two CPU cores can do.

    nepa-jax data prepare cifar10.zip --out=data/cifar --split=train       (and --split=test)
    nepa-jax pretrain --config=configs/cifar.py:nepa --config.data.path=data/cifar --workdir=W

The argument is the method: nepa (default) or mae. Both have the same encoder: 64 tokens of width 96,
6 blocks.
"""

from ml_collections import ConfigDict

from nepa_jax.config import base_config, parse_choice

ARGUMENTS = ("nepa", "mae")


def get_config(arg: str = "") -> ConfigDict:
    method = parse_choice(arg, ARGUMENTS)
    config = base_config()
    config.model.update(
        image_size=32,
        patch_size=4,
        embed_dim=96,
        depth=6,
        num_heads=3,
        pixel_mean=(0.491, 0.482, 0.447),  # CIFAR-10's own
        pixel_std=(0.247, 0.244, 0.262),
    )
    config.data.update(batch_size=256, crop_scale=(0.2, 1.0), crop_pct=1.0)
    with config.ignore_type():
        config.optim.lr = 1.5e-3
        config.optim.clip_norm = 1.0
    config.schedule = dict(total_epochs=10.0, warmup_epochs=0.5, final_lr=0.0)
    config.log.every_steps = 20
    {"nepa": nepa, "mae": mae}[method](config)
    return config


def nepa(config: ConfigDict) -> None:
    """The released recipe's parts (configs/nepa.py); LayerScale and average fit so short a run."""
    config.objective = dict(
        name="nepa_jax.objectives.nepa", include_cls=True, causal=True, shift=1, stop_gradient=True
    )
    config.model.update(norm_eps=1e-12, qk_norm=True)
    with config.ignore_type():
        config.model.rope_base = 100.0
        config.model.layer_scale_init = 1.0
        config.optim.ema_decay = 0.99


def mae(config: ConfigDict) -> None:
    """The released recipe's parts (configs/mae.py) with a small decoder."""
    config.objective = dict(
        name="nepa_jax.objectives.mae",
        mask_ratio=0.75,
        norm_pix_loss=True,
        decoder_embed_dim=64,
        decoder_depth=2,
        decoder_num_heads=2,
        decoder_mlp_ratio=4.0,
    )
    config.model.posemb = "sincos"
