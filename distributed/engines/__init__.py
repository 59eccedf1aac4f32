"""Engines: where rows live and how a step reaches them. They know users, items, rows and gradients, and no model."""
