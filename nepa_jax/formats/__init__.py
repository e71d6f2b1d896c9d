"""Other libraries' layouts of weights, as tables; one engine applies them both ways.

A new format is a row of each of two tables, and the way back, the reports and the errors come with them:

1. ``tables.py``: a :class:`Format`. Rules pair each of our parameters with their name and with one of the
   operations of ``convert.py``.
2. ``config_tables.py``: a :class:`ConfigTable`. Keys pair settings of ours with those of their config
   file; what their library fixes is named, so that a model which it cannot hold is refused.

What an exported folder tells its readers is in ``export/``: the lines that load it in ``card.py``, and in
``torch_model/run.py`` what opens it for ``--check``. Try it with a line in ``tests/formats/test_tables.py``.
"""
