"""What all tests share: the environment of worker processes, and small runs."""

import os

# Before Ray or torch are imported anywhere: many processes share few cores here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DGLBACKEND", "pytorch")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
