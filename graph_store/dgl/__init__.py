"""The graph store over DGL: the only package that knows DGL and, with its servers, Ray."""

import os

os.environ.setdefault("DGLBACKEND", "pytorch")  # read when DGL is imported, which else writes its choice into the home directory
