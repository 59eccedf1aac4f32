"""The one epoch loop of every training stage, with what it remembers: the best epoch, checkpoints and what people see."""
