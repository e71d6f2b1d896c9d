"""Names for the leaves of any pytree: the paths that masks, checkpoints and exports speak of."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def leaf_name(path: tuple[Any, ...]) -> str:
    """A key path as ``"vit/blocks/attn/qkv/kernel"``; the wrapper of a flax Variable has no name."""
    names = [
        str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path
    ]
    return "/".join(names[:-1] if names and names[-1] == "value" else names)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Every leaf under its name."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def with_leaves(tree: Tree, leaves: Mapping[str, Any]) -> Tree:
    """The same tree with other leaves, by name. Raises KeyError for a name not given."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[leaf_name(path)], tree)
