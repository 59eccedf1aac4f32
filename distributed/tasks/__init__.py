"""Tasks: what is trained. They know models, losses and artifacts, and not where rows live."""
