"""Holds the engines: where rows live, and how a step reaches them. Engines know users, items, rows and gradients, but no model."""
