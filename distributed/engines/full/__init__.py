"""Holds the full engine: every worker has the graph and the tables whole, and every step propagates over all edges."""
