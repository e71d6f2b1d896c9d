"""Which names of folders and files mean which split: one table for all kinds of sources."""

import os
import re
from collections.abc import Collection, Mapping

_WORDS = {
    "train": ("train", "training", "trainval", "trn"),
    "val": (
        *("val", "valid", "validation", "validate", "minival"),
        *("dev", "devel", "development", "eval", "evaluation"),
    ),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
    "unlabeled": ("unlabeled", "unlabelled", "unsupervised"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}

# What stands beside the word and says nothing: train_images, seg_train, trainset, val_256x256,
# ILSVRC2012_img_val. Anything else makes another word of it, and a class.
_BESIDE = (
    r"images?|imgs?|pics?|pictures?|photos?|jpe?gs?|pngs?|frames?|files?|folders?|dir"
    r"|datasets?|data|sets?|splits?|parts?|fold|seg|cls|loc|raw|rgb|full|mini|small|sample|subset"
    r"|public|private|partial|final|new|original|ilsvrc|imagenet|cifar|mnist|coco|voc|tiny"
)
_LETTERS = re.compile(r"[^\W\d_]+")
_UNITS = frozenset(("v", "x", "k", "p", "px", "of"))  # v2, 256x256, 10k, 00000-of-00002
_PART = re.compile(
    rf"(?:{_BESIDE})*"
    rf"({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})?(?-i:(?<=[a-z])[A-D](?![a-z]))?"
    rf"(?:{_BESIDE})*",
    re.IGNORECASE,
)


def split_of(name: str) -> str | None:
    """The split that a folder or file (without its suffix) is named after: train, val, test or
    unlabeled; None if the name means something else, such as a class.

    Train, TRAIN, train2017, seg_train and train_images are train; trainer, test tube and
    bullet_train are classes.
    """
    letters = _LETTERS.findall(name)
    parts = [_PART.fullmatch(part) for part in letters if part.lower() not in _UNITS]
    if not all(parts):
        return None
    words = [part[1].lower() for part in parts if part[1]]
    return _SPLIT_OF[words[0]] if len(words) == 1 or words[1:] == ["dev"] else None


def splits_of(names: Collection[str]) -> Mapping[str, str]:
    """The split of each name of a folder's entries that is named after one.

    A beginning that all have in common says nothing of them: cats_train and cats_test are splits.
    """
    shared = os.path.commonprefix(list(names))  # noqa: RUF071 (characters are meant)
    common = re.sub(r"[^\W_]*$", "", shared) if len(names) > 1 else ""
    found = {name: split_of(name) or split_of(name[len(common) :]) for name in names}
    return {name: split for name, split in found.items() if split}


def same_split(names: Collection[str], split: str) -> list[str]:
    """Those of `names` that are the split a user calls `split`, sorted: the very name if it is
    there, else those that mean the same (`val` takes `validation`)."""
    if split in names:
        return [split]
    wanted = split_of(split)
    return sorted(name for name, found in splits_of(names).items() if found == wanted)
