"""Which columns of a table have the images and their classes, by name and type."""

import re
from collections.abc import Sequence

IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixels", "imagebytes"),
    *("bytes", "imagedata", "imgbytes", "imagecontent", "content", "data", "images"),
)
# The first of these that there is has the classes.
LABEL_COLUMNS = (
    *("label", "labels", "class", "classes", "classname", "classid", "category", "categoryname"),
    *("categoryid", "target", "targets", "labelname", "labelid", "finelabel", "y", "species"),
    *("breed", "wnid", "synset", "cls", "clsid", "tag", "predictionstring", "diagnosis"),
    *("groundtruth", "gt", "coarselabel", "superclass"),
)
NAME_COLUMNS = (
    *("image", "images", "imageid", "imagename", "imagepath", "img", "imgname", "imgpath", "id"),
    *("file", "fileid", "filename", "filepath", "name", "path", "picture", "photo"),
)


def plain(name: str) -> str:
    """The letters of a column's name: fine_label, Fine Label and fineLabel are one."""
    return re.sub("[^a-z]", "", name.lower())


def first_of(words: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column that is named by the first of `words` that names one."""
    names = {plain(column): column for column in reversed(columns)}
    return next((names[word] for word in words if word in names), None)
