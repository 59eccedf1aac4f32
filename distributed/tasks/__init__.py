"""Holds the tasks, which say what is trained: they know models, losses and artifacts, but not which process holds a row."""
