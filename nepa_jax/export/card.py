"""The README.md of an exported folder."""

import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from nepa_jax.base.text import printable
from nepa_jax.formats.configs import floored_ratio
from nepa_jax.objectives.encoder import is_causal

# How to load FOLDER in each library; words in capitals are filled in from the config.
LOADING = {
    "nepa": """\
from transformers import AutoImageProcessor, AutoModel
processor = AutoImageProcessor.from_pretrained("FOLDER")
model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True).eval()
features = model(**processor(image, return_tensors="pt")).last_hidden_state""",
    "mae": """\
import functools, models_mae, safetensors.torch, torch  # in a checkout of facebookresearch/mae
model = models_mae.MaskedAutoencoderViT(ARGUMENTS)
model.load_state_dict(safetensors.torch.load_file("FOLDER/model.safetensors"))""",
    "vit_mae": """\
from transformers import AutoImageProcessor, ViTMAEForPreTraining
processor = AutoImageProcessor.from_pretrained("FOLDER")
model = ViTMAEForPreTraining.from_pretrained("FOLDER").eval()
outputs = model(**processor(image, return_tensors="pt"))""",
    "vit": """\
from transformers import AutoImageProcessor, ViTModel
processor = AutoImageProcessor.from_pretrained("FOLDER")
model = ViTModel.from_pretrained("FOLDER", add_pooling_layer=False).eval()
features = model(**processor(image, return_tensors="pt")).last_hidden_state""",
    "timm": """\
import timm
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model.forward_features(transform(image)[None])""",
    "timm_eva": """\
import functools, timm, torch
norm = functools.partial(torch.nn.LayerNorm, eps=EPS)
model = timm.create_model("local-dir:FOLDER", pretrained=True, norm_layer=norm).eval()
features = model.forward_features(images, is_causal=CAUSAL)""",
    "big_vision": """\
import timm  # big_vision itself: vit.load(None, "FOLDER/model.npz", model_cfg)
model = timm.models.VisionTransformer(ARGUMENTS)
model.load_pretrained("FOLDER/model.npz")""",
}
EQUAL = (
    "Hidden states of every layer equal the trained model's to 1e-4 in float32; "
    "`nepa-jax export --check` measures it."
)
PARITY = {
    "mae": "Equal to the official code to 1e-4 at every layer in float32.",
    "big_vision": (
        "Equal to 1e-4 at every layer in float32 where the same file is read by timm. big_vision's "
        "own MLP takes the tanh form of GELU where this model was trained with the exact one, "
        "which moves features by about 1e-3."
    ),
}

# Of models_mae.py; its decoder has the encoder's mlp_ratio.
DECODER = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")


def model_card(
    name: str, config: ConfigDict, provenance: Mapping[str, str], metrics: Mapping[str, float]
) -> str:
    """What it is, how it was trained, how well, and how to load it."""
    model, method = config.model, config.objective.name.rpartition(".")[2]
    library = "timm" if name.startswith("timm") else "transformers"
    sections = [
        f"---\nlibrary_name: {library}\ntags: [vision]\n---",
        f"# {method}: {model.depth} layers of width {model.embed_dim}, patch {model.patch_size}",
        f"A vision transformer trained with nepa_jax, in the layout `{name}`.",
        bullets(facts(config, provenance)),
        "## Metrics",
        bullets({key: f"{value:.6g}" for key, value in metrics.items()}) or "None were logged.",
        "## Load",
        f"```python\n{loading_lines(name, config)}\n```",
        "## Numeric parity",
        PARITY.get(name, EQUAL),
        "The whole config is in `provenance.json` and in the header of the safetensors files.",
    ]
    return "\n\n".join(sections) + "\n"


def facts(config: ConfigDict, provenance: Mapping[str, str]) -> dict[str, object]:
    """What a reader asks first."""
    model, data = config.model, config.data
    height, width = model.image_size
    return {
        "Objective": config.objective.name,
        "Weights": {"ema": "moving average", "raw": "raw"}[provenance["nepa_jax.weights"]],
        "Step": provenance["nepa_jax.step"],
        "Heads": model.num_heads,
        "Images": f"{height} x {width} px, mean {model.pixel_mean}, std {model.pixel_std}",
        "Data": data.path or "unknown",
        "Data fingerprint": provenance["nepa_jax.fingerprint"][:12] or "unknown",
        "Batch": data.batch_size,
        "Versions": provenance["nepa_jax.versions"],
    }


def bullets(items: Mapping[str, object]) -> str:
    """A Markdown list of ``key: value``."""
    return "\n".join(f"- {text(key)}: {text(value)}" for key, value in items.items())


def text(value: object) -> str:
    """What a file of others says, as text: as code, unless Markdown and HTML see nothing in it."""
    shown = printable(str(value))
    if re.fullmatch(r"[A-Za-z0-9 ,.()/%+-]*", shown):
        return shown
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{ticks} {shown} {ticks}" if "`" in shown else f"`{shown}`"


def loading_lines(name: str, config: ConfigDict) -> str:
    """The lines with this model's values in them."""
    lines = LOADING[name].replace("EPS", str(config.model.norm_eps))
    lines = lines.replace("CAUSAL", str(is_causal(config)))
    return lines.replace("ARGUMENTS", arguments(name, config))


def arguments(name: str, config: ConfigDict) -> str:
    """Constructor arguments, for the libraries whose files carry no config."""
    model, objective = config.model, config.objective
    values = dict(
        img_size=model.image_size[0],
        patch_size=model.patch_size,
        in_chans=model.in_channels,
        embed_dim=model.embed_dim,
        depth=model.depth,
        num_heads=model.num_heads,
        mlp_ratio=floored_ratio(model.mlp_ratio, model.embed_dim),
    )
    if name == "mae":
        values |= {key: objective[key] for key in DECODER if key in objective}
        values["norm_layer"] = f"functools.partial(torch.nn.LayerNorm, eps={model.norm_eps})"
    else:
        values |= dict(no_embed_class=True, num_classes=objective.get("num_classes", 0))
    return ", ".join(f"{key}={value}" for key, value in values.items())
