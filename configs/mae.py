"""MAE pretraining on ImageNet-1k (arXiv 2111.06377; released code facebookresearch/mae at efb2a80).

    nepa-jax pretrain --config=configs/mae.py:L/16 --config.data.path=DIR --workdir=W
    nepa-jax pretrain --config=configs/mae.py:H/14,paper --config.data.path=DIR --workdir=W

The argument is SIZE/PATCH with sizes Ti S B L H g, and a preset:
  release (default)  the released command: 800 epochs, normalised pixel targets
  paper              the paper's main results: 1600 epochs (Table 3)

Meant for a pod: batch 4096 (L, 800 epochs: 15.4 h on 128 TPU-v3 cores; paper, Table 2). Expect
after fine-tuning top-1 of 83.6 % (B), 85.9 % (L), 86.9 % (H) (paper, Table 3).
"""

from ml_collections import ConfigDict

from nepa_jax.config import base_config, parse_arg

ARGUMENTS = ("Ti/16", "S/16", "B/16", "L/16", "H/14", "g/14")  # what `nepa-jax configs` lists
PRESETS = ("release", "paper")


def get_config(arg: str = "") -> ConfigDict:
    variant, preset = parse_arg(arg, default="L/16", presets=PRESETS)
    config = base_config()
    config.model.update(variant.fields)
    config.model.update(posemb="sincos", init="xavier", norm_eps=1e-6)  # released models_mae.py
    config.objective = dict(
        name="nepa_jax.objectives.mae",
        mask_ratio=0.75,  # paper, Fig. 5
        norm_pix_loss=True,  # paper, Table 1d; released command
        decoder_embed_dim=512,  # paper, Table 1a and 1b; released models_mae.py
        decoder_depth=8,
        decoder_num_heads=16,
        decoder_mlp_ratio=4.0,
    )
    with config.ignore_type():
        config.optim.base_lr = 1.5e-4  # paper, Table 8, as are weight decay, betas, batch, warm-up
    config.data.update(crop_scale=(0.2, 1.0), interpolation="bicubic")  # released main_pretrain.py
    config.schedule.update(total_epochs=1600.0 if preset == "paper" else 800.0, warmup_epochs=40.0)
    return config
