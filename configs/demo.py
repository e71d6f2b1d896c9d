"""Small NEPA and MAE models on crops of photographs: the demo, made for two CPU cores.

    nepa-jax demo
    nepa-jax pretrain --config=configs/demo.py:nepa --config.data.path=DIR --workdir=W

The argument is the method: nepa (default) or mae. The images are those of nepa_jax.demo.photographs.
"""

from ml_collections import ConfigDict

from nepa_jax.config import base_config, parse_choice

ARGUMENTS = ("nepa", "mae")


def get_config(arg: str = "") -> ConfigDict:
    method = parse_choice(arg, ARGUMENTS)
    config = base_config()
    config.model.update(
        image_size=32,
        patch_size=8,  # 16 tokens; with 4 px a step of NEPA takes four times as long
        embed_dim=96,
        depth=3,
        num_heads=3,
        pixel_mean=(0.5,) * 3,  # the crops' own
        pixel_std=(0.19,) * 3,
    )
    # The crops as they are, in evaluation too.
    config.data.update(batch_size=64, crop="none", crop_pct=1.0, flip=True)
    with config.ignore_type():
        config.optim.lr = 2e-3
        config.optim.clip_norm = 1.0
    config.log.every_steps = 20
    config.checkpoint.every_steps = 200
    {"nepa": nepa, "mae": mae}[method](config)
    return config


def nepa(config: ConfigDict) -> None:
    """The released recipe's parts (configs/nepa.py) at a size and length for minutes."""
    # Without the class token's own term, which can only learn the mean of the first patches.
    config.objective = dict(
        name="nepa_jax.objectives.nepa", include_cls=False, causal=True, shift=1, stop_gradient=True
    )
    config.model.update(norm_eps=1e-12, qk_norm=True)
    with config.ignore_type():
        config.model.rope_base = 100.0
        # The released 1e-5 lets blocks in slowly, over 500,000 steps. This run is over by then.
        config.model.layer_scale_init = 1.0
        config.optim.ema_decay = 0.99  # averages the last hundred steps, not the last 10,000
        config.schedule = dict(total_steps=700.0, warmup_steps=60.0, final_lr=0.0)


def mae(config: ConfigDict) -> None:
    """The released recipe's parts (configs/mae.py) with a small decoder and fewer removed patches."""
    config.objective = dict(
        name="nepa_jax.objectives.mae",
        mask_ratio=0.6,  # 75 % of 16 patches would leave four
        norm_pix_loss=True,
        decoder_embed_dim=48,
        decoder_depth=1,
        decoder_num_heads=2,
        decoder_mlp_ratio=4.0,
    )
    config.model.posemb = "sincos"
    config.schedule = dict(total_steps=600.0, warmup_steps=60.0, final_lr=0.0)
