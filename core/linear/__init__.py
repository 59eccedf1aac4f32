"""Defines linear models in closed form as teachers (docs/method.md 7.1): each is fitted in one go, and ends as vectors.

`base.py` has what all of them share, `search.py` chooses open settings on validation, `factors.py` turns a matrix of scores into vectors,
and every other module has one kind, which `core/kinds.py` names. This package imports none of them, since the settings are in
`config.py`, which `core/config/` reads.
"""
