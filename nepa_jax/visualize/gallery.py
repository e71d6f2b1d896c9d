"""Which pictures some weights can give, and the making of them: for any weights that `load` opens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.data.records import RecordSet
from nepa_jax.evals.encoders import checked_layers
from nepa_jax.evals.features import POOLS
from nepa_jax.evals.frozen import freeze
from nepa_jax.loading import Loaded
from nepa_jax.models.vit import ViT
from nepa_jax.objectives import encoder, mae, nepa
from nepa_jax.objectives.base import encode
from nepa_jax.visualize import attention, neighbors, pca, reconstruct, similarity
from nepa_jax.visualize.images import Cut, Shown, of_record, short

BATCH = 64  # images of a set at a time


@dataclass(frozen=True)
class Choice:
    """What of a picture is asked for; None: all that there is, or what its module chooses."""

    layer: int | None = None  # counted from 0, the embedding
    head: int | None = None
    patch: int | None = None  # in raster order
    mask_ratios: tuple[float, ...] = reconstruct.RATIOS
    seed: int = 0  # of the masks
    among: int = 5000  # images of the set, in which neighbours are looked for


@dataclass(frozen=True)
class Gallery:
    """Weights, the images that they are shown on, and where their neighbours are."""

    loaded: Loaded
    images: Sequence[Shown]
    how: Cut
    choice: Choice
    records: RecordSet | None = None

    @property
    def pixels(self) -> list[np.ndarray]:
        """uint8 [H, W, C] each."""
        return [image.pixels for image in self.images]

    @property
    def names(self) -> list[str]:
        return [short(image.name) for image in self.images]

    @property
    def depth(self) -> int:
        return int(self.loaded.config.model.depth)

    @property
    def causal(self) -> bool:
        return encoder.is_causal(self.loaded.config)

    def num_patches(self, image: Shown) -> int:
        return int(np.prod(image.pixels.shape[:2])) // self.how.patch_size**2


class Kind(NamedTuple):
    """One kind of picture."""

    why_not: Callable[[Gallery], str | None]  # these weights cannot give it; None: they can
    draw: Callable[[Gallery], Iterator[tuple[str, Figure]]]  # each with the stem of its file


def checked(gallery: Gallery) -> Gallery:
    """The same with the layer counted from 0.

    Raises:
        UserError: there is no such layer, head or patch.
    """
    choice, heads = gallery.choice, int(gallery.loaded.config.model.num_heads)
    if choice.layer is not None:
        (layer,) = checked_layers([choice.layer], gallery.depth)
        choice = replace(choice, layer=layer)
    if choice.head is not None and choice.head >= heads:
        raise UserError(f"--head={choice.head}: does not exist; choose 0 … {heads - 1}")
    for image in gallery.images:
        count = gallery.num_patches(image)
        if choice.patch is not None and choice.patch >= count:
            raise UserError(
                f"--patch={choice.patch}: image {image.name} has {count} patches; choose 0 … {count - 1}"
            )
    return replace(gallery, choice=choice)


def _no_decoder(gallery: Gallery) -> str | None:
    model, ratios = gallery.loaded.model, gallery.choice.mask_ratios
    if not isinstance(model, mae.MAE):
        alone = "without MAE's decoder; give the workdir, or an export of all of it"
        return _lacks(gallery, "predict no pixels", alone)
    if not reconstruct.usable(ratios, min(map(gallery.num_patches, gallery.images))):
        return (
            "every mask ratio removes all patches of an image; give smaller ones, or larger images"
        )
    return None


def _no_prediction(gallery: Gallery) -> str | None:
    if not isinstance(gallery.loaded.model, nepa.NEPA):
        alone = (
            "of which nothing says that it predicts; give NEPA's workdir, or --format=nepa of it"
        )
        return _lacks(gallery, "predict no embeddings", alone)
    return None


def _lacks(gallery: Gallery, what: str, alone: str) -> str:
    """Why weights of other objectives, or those of an encoder alone, cannot give a picture."""
    if isinstance(gallery.loaded.model, encoder.Encoder):
        return f"these weights are an encoder alone, {alone}"
    name = gallery.loaded.config.objective.name.rpartition(".")[2]
    return f"weights of the objective {name} {what}"


def _no_attention(gallery: Gallery) -> str | None:
    if not isinstance(getattr(gallery.loaded.model, "vit", None), ViT):
        return "the model has no part `vit`, a ViT of this package"
    if gallery.choice.layer == 0:
        return f"layer 0 is the embedding, where nothing attends; choose 1 … {gallery.depth}"
    return None


def _no_components(gallery: Gallery) -> str | None:
    if sum(map(gallery.num_patches, gallery.images)) < 2:
        return "there is but one patch; give larger images, or more"
    return None


def _no_set(gallery: Gallery) -> str | None:
    if gallery.records is None:
        return "there is no set to look in; give --data=DIR"
    if min(len(gallery.records), gallery.choice.among) < 2:
        return f"there is but one image to look at in {gallery.records.path}; give a larger set"
    return None


def _reconstructions(gallery: Gallery) -> Iterator[tuple[str, Figure]]:
    patches = min(map(gallery.num_patches, gallery.images))
    asked = gallery.choice.mask_ratios
    ratios = reconstruct.usable(asked, patches)
    for ratio in sorted(set(asked) - set(ratios)):
        warn(f"left out: mask ratio {ratio:g}: keeps none of {patches} patches")
    seed = gallery.choice.seed
    yield (
        "reconstructions",
        reconstruct.draw(gallery.loaded.model, gallery.pixels, ratios, seed),
    )


def _attention(gallery: Gallery) -> Iterator[tuple[str, Figure]]:
    choice, vit = gallery.choice, gallery.loaded.model.vit
    layers = () if choice.layer is None else (choice.layer,)
    for number, (image, name) in enumerate(zip(gallery.pixels, gallery.names, strict=True), 1):
        patch = choice.patch
        if patch is None:
            patch = attention.choose_patch(image, gallery.how.patch_size)
        query = attention.Query(image, patch, name)
        yield f"attention-{number}", attention.draw(vit, query, gallery.causal, layers, choice.head)


def _similarity(gallery: Gallery) -> Iterator[tuple[str, Figure]]:
    model, patch = gallery.loaded.model, gallery.choice.patch
    yield "similarity", similarity.draw(model, gallery.pixels, patch, gallery.names)


def _components(gallery: Gallery) -> Iterator[tuple[str, Figure]]:
    layer = gallery.choice.layer
    layers = range(gallery.depth + 1) if layer is None else [layer]
    yield "pca", pca.draw(gallery.loaded, gallery.pixels, layers, gallery.names)


def _neighbors(gallery: Gallery) -> Iterator[tuple[str, Figure]]:
    found, cosines, count = found_neighbors(gallery)
    heading = (
        f"Nearest of {count:,} images of {gallery.records.split}, by the cosine of mean patch features "
        f"at layer {telling_layer(gallery)} of {gallery.depth}"
    )
    yield "neighbors", neighbors.draw(gallery.images, found, cosines, heading)


def found_neighbors(gallery: Gallery) -> tuple[list[list[Shown]], np.ndarray, int]:
    """For each image those of the set that are most alike, with their cosines; and of how many.

    An image of the set is none of its own neighbours. The set's images are cut as in evaluation.
    """
    loaded, records, layer = gallery.loaded, gallery.records, telling_layer(gallery)
    data = replace(gallery.how.data, path=records.path, split=records.split, batch_size=BATCH)
    bank = freeze(loaded, data, ("mean",), [layer], gallery.choice.among)
    queries = [
        np.asarray(encode(loaded.objective, loaded.model, image[None], layer, POOLS["mean"]))[0]
        for image in gallery.pixels
    ]
    place = {int(number): row for row, number in enumerate(bank.index)}
    own = [place.get(image.record) for image in gallery.images]
    count = min(neighbors.NUM_NEIGHBORS, len(bank) - 1)
    found = neighbors.nearest(np.stack(queries), bank.features["mean"][0], own, count)
    plain = replace(gallery.how, whole=False)
    shown = [
        [of_record(records, int(bank.index[row]), plain) for row in rows] for rows in found.rows
    ]
    return shown, found.cosines, len(bank)


def telling_layer(gallery: Gallery) -> int:
    """The layer that neighbours are looked for at, unless one is asked for.

    The last one; of a causal encoder the middle, since its last output tells of the next patch.
    """
    if gallery.choice.layer is not None:
        return gallery.choice.layer
    return (gallery.depth + 1) // 2 if gallery.causal else gallery.depth


KINDS = {
    "reconstructions": Kind(_no_decoder, _reconstructions),
    "attention": Kind(_no_attention, _attention),
    "similarity": Kind(_no_prediction, _similarity),
    "pca": Kind(_no_components, _components),
    "neighbors": Kind(_no_set, _neighbors),
}
