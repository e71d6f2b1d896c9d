"""What all recipes start from. Not a recipe: pick nepa.py, mae.py or demo.py.

Durations carry their unit in the key: ``_steps``, ``_epochs`` or ``_examples``; an override with
another unit takes the place of the one here.
"""

from ml_collections import ConfigDict

from nepa_jax.data.settings import DATA


def get_config(arg: str = "") -> ConfigDict:
    """The sections and every key a run understands."""
    config = ConfigDict()
    config.model = dict(
        image_size=224,  # px: one side, or (height, width)
        patch_size=16,
        in_channels=3,
        pixel_mean=(0.485, 0.456, 0.406),  # of pixels in [0, 1]: ImageNet
        pixel_std=(0.229, 0.224, 0.225),
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4.0,
        mlp="gelu",  # or "swiglu", "geglu"
        qkv_bias=True,
        posemb="none",  # or "sincos", "learned"
        rope_base=None,
        rope_rescale=1.0,
        rope_jitter=1.0,
        rope_shift=0.0,
        qk_norm=False,
        qk_norm_affine=False,
        qk_norm_bias=False,  # beside the scale of an affine norm
        layer_scale_init=None,
        drop_path_rate=0.0,
        final_norm=True,
        norm_eps=1e-6,
        init="xavier",  # or "normal"
    )
    config.objective = dict(name="")
    config.data = dict(DATA)  # nepa_jax/data/settings.py has a line for each key
    config.optim = dict(
        lr=None,  # either this
        base_lr=None,  # or this, per 256 images
        shape="cosine",  # how the rate falls after the warm-up, or "linear"
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.05,
        clip_norm=None,
        spike_factor=None,  # skip steps whose gradient is so many times the running mean
        accum_steps=1,
        ema_decay=None,
        # Of fine-tuning; which parameters stand where: nepa_jax/optim.py.
        layer_decay=None,  # of the rate, for each layer further down
        layer_decay_end=None,  # which layer_decay reaches at the end of the run
        layer_decay_ramp="cosine",  # on its way there, or "linear"
        layer_decay_offset=0,  # the power at the top block: 0 in NEPA's code, 1 in MAE's
        layer_warmup=False,  # the smaller a layer's rate, the longer its warm-up
        head_lr=None,  # of the classifier and the final norm; none: as all others
        freeze_patch_embed=False,
        decay_tokens=True,  # weight decay of class token and position table, too
    )
    config.schedule = dict(total_epochs=800.0, warmup_epochs=40.0, final_lr=0.0)
    config.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1: all remaining devices
    config.checkpoint = dict(
        every_steps=1000,
        first_minutes=10.0,  # one by time before the first of these; 0: none
        keep_last=2,
        keep_every_steps=0,  # 0: none for good
        keep_best=False,  # beside these, the one of the highest accuracy of evals.validate
    )
    config.log = dict(
        every_steps=50,
        loggers="",  # beside metrics.jsonl: "tensorboard,wandb,mlflow,trackio" (docs/look.md)
        pictures_every_steps=0,  # of what the objective draws, into WORKDIR/pictures; 0: none
        profile_steps=(0, 0),  # the first step and the one after the last; SIGUSR1: the next five
        watchdog_s=600.0,  # stacks are printed when no step ends for so long; 0: never
    )
    config.evals = dict(
        online=False,  # linear heads, kNN and RankMe while it trains (docs/evaluation.md)
        layers=(),  # 1 … depth, or -1 for the last; (): half, three quarters and all of the way up
        lr=1e-3,  # of the heads' Adam
        every_steps=1000,  # of what follows; kNN and RankMe after the first step too, all at the end
        bank_images=10_000,  # the first of data.split: where kNN looks, and RankMe's
        test_images=2000,  # the first of test_split
        test_split="validation",
        validate=False,  # loss and accuracy on test_split, of an objective that learns labels
        validate_images=0,  # the first of test_split alone; 0: all of it
    )
    config.run = dict(
        seed=0,
        dtype="auto",  # of matrix products: bfloat16 on accelerators, float32 on the CPU
        residual_dtype="float32",  # of the sum of the blocks; "bfloat16" halves what is moved and kept of it
        reduce_dtype="float32",  # of weights' gradients, summed over devices; "bfloat16" sends half
        remat="none",  # or "names", "dots", "full": what the backward pass computes again
        max_skipped_steps=10,  # non-finite or spiking steps in a row before the run stops
        init_ema=False,  # with its averaged weights
        init_from="",  # workdir, exported folder or weights of another library to begin with
        allow_data_change=False,  # resume on another data set than the checkpoint's
    )
    return config
