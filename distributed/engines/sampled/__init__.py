"""The sampled engine: neighbour blocks around each batch; tables, features and checkpoints sharded over the workers.

A step on every worker: blocks around its share of the batch (made in the background); the ids of their rows go to the rows' owners; d-sized
rows come back, gradients return the same way, and owners update the ID rows that were touched.
"""
