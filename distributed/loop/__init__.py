"""Holds the epoch loop of every training stage, with its selection of the best epoch, its checkpoints, records and trackers."""
