"""NEPA in PyTorch: a causal vision transformer that predicts the next patch embedding.

Method: arXiv 2512.16922. Parameter names are those of the official code, so that weights load in
both. Shapes: B images, N patches, T = 1 + N tokens (class token first), D width, H heads,
d = D / H.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput

from .configuration_nepa import ViTNepaConfig


@dataclass
class NepaOutput(ModelOutput):
    """What comes out, float32.

    ``last_hidden_state`` [B, T, D] is normed; ``input_embedding`` [B, N, D] are the targets.

    ``hidden_states``: the embeddings and every layer's output, [B, T, D], all before the last norm
    (the official class, run by Transformers 4.56, puts ``last_hidden_state`` in the last place).
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    input_embedding: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


# Rotary positions

Rotary = tuple[Tensor, Tensor]  # cosines and sines


def patch_coordinates(rows: int, columns: int, device: torch.device) -> Tensor:
    """Patch centres (row, column), each axis on [-1, 1]: float32 [N, 2] in raster order."""
    axes = [2 * (torch.arange(n, device=device) + 0.5) / n - 1 for n in (rows, columns)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)


def move_coordinates(coordinates: Tensor, config: ViTNepaConfig) -> Tensor:
    """One random shift, jitter (per axis) and rescaling for the whole batch, as in training."""

    def uniform(size: int) -> Tensor:
        return 2 * torch.rand(size, device=coordinates.device) - 1

    if config.pos_embed_shift is not None:
        coordinates = coordinates + config.pos_embed_shift * uniform(2)
    if config.pos_embed_jitter is not None:
        coordinates = coordinates * config.pos_embed_jitter ** uniform(2)
    if config.pos_embed_rescale is not None:
        coordinates = coordinates * config.pos_embed_rescale ** uniform(1)
    return coordinates


def rotary_table(coordinates: Tensor, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines [1 + N, d] of the angles; the class token's angle is zero."""
    steps = torch.arange(head_dim // 4, device=coordinates.device) * (4 / head_dim)
    angles = 2 * math.pi * coordinates[:, :, None] * theta**-steps
    angles = F.pad(angles.flatten(1).tile(2), (0, 0, 1, 0))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Rotates queries or keys [B, H, T, d]; element i pairs with i + d / 2."""
    cos, sin = (part.to(x.dtype) for part in table)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


# Layers


class PatchEmbeddings(nn.Module):
    """Images [B, C, height, width] -> patch embeddings [B, N, D]."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(images).flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    """Patch embeddings behind a class token, and absolute positions if there are any."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embeddings = PatchEmbeddings(config)
        tokens = 1 + math.prod(config.grid)
        if config.absolute_positions:
            self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, config.hidden_size))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.patch_embeddings(images)
        tokens = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        positions = getattr(self, "position_embeddings", None)
        return patches, tokens if positions is None else tokens + positions


class SelfAttention(nn.Module):
    """Queries, keys (normed, rotated) and values; each position sees itself and those before."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__()
        dim, self.causal = config.hidden_size, config.is_causal
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = (
            nn.Linear(dim, dim, bias=config.qkv_bias) for _ in range(3)
        )
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        if config.qk_norm:
            options = config.layer_norm_eps, config.qk_norm_affine, config.qk_norm_bias
            self.q_norm = nn.LayerNorm(dim // self.heads, *options)
            self.k_norm = nn.LayerNorm(dim // self.heads, *options)

    def forward(self, x: Tensor, table: Rotary) -> Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        query, key = rotate(self.q_norm(query), table), rotate(self.k_norm(key), table)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return mixed.transpose(1, 2).flatten(2)


class Dense(nn.Module):
    """A linear map under the name ``dense``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class Attention(nn.Module):
    """Self-attention and its output projection."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.output = Dense(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, table: Rotary) -> Tensor:
        return self.output(self.attention(x, table))


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), config.layerscale_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


def layer_scale(config: ViTNepaConfig) -> nn.Module:
    return nn.Identity() if config.layerscale_value is None else LayerScale(config)


class Intermediate(nn.Module):
    """The MLP's first half: exact GELU, or a gate by SiLU or GELU."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        if config.use_gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gated = config.use_gated_mlp
        self.activation = {"gelu": F.gelu, "silu": F.silu}[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        up = self.up_proj(x)
        return self.activation(self.gate_proj(x)) * up if self.gated else self.activation(up)


class Output(Dense):
    """The MLP's second half and its LayerScale."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__(config.intermediate_size, config.hidden_size)
        self.layer_scale = layer_scale(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_scale(self.dense(x))


class Layer(nn.Module):
    """x + scale · attention(norm x), then x + scale · mlp(norm x)."""

    def __init__(self, config: ViTNepaConfig, drop_rate: float) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config)
        self.layer_scale = layer_scale(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = Intermediate(config)
        self.output = Output(config)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor, table: Rotary) -> Tensor:
        x = x + self.drop(self.layer_scale(self.attention(self.layernorm_before(x), table)))
        return x + self.drop(self.output(self.intermediate(self.layernorm_after(x))))

    def drop(self, branch: Tensor) -> Tensor:
        """In training, drops the branch of some images and scales up the others."""
        if not self.training or self.drop_rate == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_rate
        return branch * kept / (1 - self.drop_rate)


class Encoder(nn.Module):
    """The stack of layers; the drop rate rises linearly from 0."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        rates = torch.linspace(0, config.drop_path_prob, depth, device="cpu").tolist()
        self.layer = nn.ModuleList([Layer(config, rate) for rate in rates])

    def forward(self, x: Tensor, table: Rotary) -> list[Tensor]:
        states = [x]
        for layer in self.layer:
            states.append(layer(states[-1], table))
        return states


# Models


class ViTNepaPreTrainedModel(PreTrainedModel):
    config_class = ViTNepaConfig
    base_model_prefix = "vit_nepa"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal matrices, zero biases, norms at one, LayerScale at its start."""
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.ones_(module.weight)
        elif isinstance(module, LayerScale):
            nn.init.constant_(module.lambda1, self.config.layerscale_value)
        elif isinstance(module, Embeddings):
            for token in module.parameters(recurse=False):
                nn.init.normal_(token, std=std)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class ViTNepaModel(ViTNepaPreTrainedModel):
    """The encoder: images -> features of the class token and of every patch."""

    # A head in the file belongs to another class of this module.
    _keys_to_ignore_on_load_unexpected = (r"fc_norm\..*", r"classifier\..*")

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, **kwargs: Any
    ) -> NepaOutput:
        """``pixel_values`` float32 [B, C, height, width], normalised; any multiple of the patch."""
        patches, tokens = self.embeddings(pixel_values)
        states = self.encoder(tokens, self.rotary_table(pixel_values))
        return NepaOutput(
            last_hidden_state=self.layernorm(states[-1]),
            input_embedding=patches,
            hidden_states=tuple(states) if output_hidden_states else None,
        )

    def rotary_table(self, images: Tensor) -> Rotary:
        config, patch = self.config, self.config.patch_size
        rows, columns = (side // patch for side in images.shape[2:])
        coordinates = patch_coordinates(rows, columns, images.device)
        if self.training:
            coordinates = move_coordinates(coordinates, config)
        head_dim = config.hidden_size // config.num_attention_heads
        return rotary_table(coordinates, head_dim, config.rope_theta)


class ViTNepaForPreTraining(ViTNepaPreTrainedModel):
    """The encoder and its loss: minus the cosine of predictions and next patch embeddings."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__(config)
        self.vit_nepa = ViTNepaModel(config)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, **kwargs: Any
    ) -> NepaOutput:
        output = self.vit_nepa(pixel_values, output_hidden_states)
        predictions, targets = output.last_hidden_state[:, :-1], output.input_embedding.detach()
        output.loss = -F.cosine_similarity(predictions, targets, dim=-1).mean()
        return output


class ViTNepaForImageClassification(ViTNepaPreTrainedModel):
    """The encoder, the normed mean of the patches (or the last token), and a classifier."""

    def __init__(self, config: ViTNepaConfig) -> None:
        super().__init__(config)
        self.vit_nepa = ViTNepaModel(config)
        if config.add_pooling_layer:
            self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """``labels`` int64 [B] adds the mean cross-entropy as ``loss``."""
        output = self.vit_nepa(pixel_values, output_hidden_states)
        tokens, mean = output.last_hidden_state, self.config.add_pooling_layer
        pooled = self.fc_norm(tokens[:, 1:].mean(dim=1)) if mean else tokens[:, -1]
        logits = self.classifier(pooled)
        return ImageClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
        )
