"""LayerScale folded into the linear maps before it: the same function without it."""

from collections.abc import Mapping

import numpy as np

# Each scale, and the map whose outputs it multiplies.
FOLDS = {
    "vit/blocks/layer_scale1": "vit/blocks/attn/out",
    "vit/blocks/layer_scale2": "vit/blocks/mlp/down",
}


def has_layer_scale(leaves: Mapping[str, object]) -> bool:
    return any(scale in leaves for scale in FOLDS)


def folded(leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters without LayerScale, by name; stacks of blocks have their layers in front.

    As NEPA's released init_nepa_cls_from_pretrain.py does with --disable_layerscale.
    """
    found = {name: leaf for name, leaf in leaves.items() if name not in FOLDS}
    for scale, linear in FOLDS.items():
        factors = np.asarray(leaves[scale])  # [layers, D], of the last axis of kernel and bias
        for name in (f"{linear}/kernel", f"{linear}/bias"):
            leaf = np.asarray(leaves[name])
            between = [1] * (leaf.ndim - factors.ndim)
            found[name] = leaf * factors.reshape(factors.shape[0], *between, factors.shape[1])
    return found
