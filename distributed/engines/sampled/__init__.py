"""Holds the sampled engine: neighbour blocks around each batch; tables, features and checkpoints sharded over the workers.

In a step every worker does the following:
1. In the background it samples blocks around its share of the batch, and sends the ids of the rows that they need to the rows' owners.
2. The owners answer with d-sized rows, from which the worker computes its loss.
3. The rows' gradients return to the owners, who update the ID rows that got one.
"""
