"""Bytes of numbers, and units of memory."""

FLOAT, INDEX, DOUBLE = 4, 8, 8  # bytes of a float32, an int64 and a float64
MIB, GIB = 2**20, 2**30
