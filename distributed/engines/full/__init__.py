"""The full engine: graph and tables whole in every worker, propagation over all edges in every step."""
