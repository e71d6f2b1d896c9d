"""Configuration of NEPA models; the names are those of the official code's config.json."""

from typing import Any

from transformers import PretrainedConfig


class ViTNepaConfig(PretrainedConfig):
    """The architecture.

    ``image_size`` is one side or [height, width]. ``layerscale_value=None`` leaves LayerScale
    out. ``pos_embed_shift``, ``_jitter`` and ``_rescale`` change the rotary coordinates in
    training, None is off. ``absolute_positions`` adds a learned table to the embeddings (the
    variant of the paper; the official code has none).
    """

    model_type = "vit_nepa"

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        use_gated_mlp: bool = False,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-12,
        rope_theta: float = 100.0,
        image_size: int | list[int] = 224,
        patch_size: int = 14,
        num_channels: int = 3,
        qkv_bias: bool = True,
        qk_norm: bool = True,
        qk_norm_affine: bool = False,
        qk_norm_bias: bool = False,
        layerscale_value: float | None = 1e-5,
        drop_path_prob: float = 0.0,
        add_pooling_layer: bool = True,
        is_causal: bool = True,
        pos_embed_shift: float | None = None,
        pos_embed_jitter: float | None = None,
        pos_embed_rescale: float | None = 2.0,
        absolute_positions: bool = False,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.use_gated_mlp = use_gated_mlp
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.rope_theta = rope_theta
        self.image_size, self.patch_size = image_size, patch_size
        self.num_channels = num_channels
        self.qkv_bias = qkv_bias
        self.qk_norm, self.qk_norm_affine = qk_norm, qk_norm_affine
        self.qk_norm_bias = qk_norm_bias
        self.layerscale_value = layerscale_value
        self.drop_path_prob = drop_path_prob
        self.add_pooling_layer = add_pooling_layer
        self.is_causal = is_causal
        self.pos_embed_shift, self.pos_embed_jitter = pos_embed_shift, pos_embed_jitter
        self.pos_embed_rescale = pos_embed_rescale
        self.absolute_positions = absolute_positions
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height // self.patch_size, width // self.patch_size
