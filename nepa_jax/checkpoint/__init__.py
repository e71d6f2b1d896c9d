"""What a run saves, how it is proven, and how it is read again. The words of this room:

checkpoint: a folder ``WORKDIR/checkpoints/STEP`` with ``arrays`` and ``meta``. It appears whole or
    not at all, and is never changed. That of step 0 holds imported weights.
part: arrays that are read by themselves: ``model``; ``ema``, its average; ``rest``, the remaining state.
leaf: one array of a part, under its name in base/trees.py.
meta: what a checkpoint says of itself: its provenance, and dtype, shape and checksum of every leaf.
provenance: the run that a checkpoint belongs to: its config, data set and versions.
checksum: of a leaf's values, whatever devices or hosts they are spread over; taken on the devices
    before a leaf is written, and again where it was read to.
damaged: not what was saved, or not to be read. Sound: the contrary, which only reading proves.
weights: a model of a checkpoint, raw or averaged, and what belongs to it.

saving.py has the checkpoints of a run, reading.py one checkpoint and the newest sound one, weights.py
the weights alone; arrays.py is how arrays lie on disk, and what all of them are read by.
"""
