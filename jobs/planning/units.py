"""Bytes of numbers, and units of memory."""

HALF, FLOAT, INDEX, DOUBLE = 2, 4, 8, 8  # bytes of a float16, a float32, an int64 and a float64
MIB, GIB = 2**20, 2**30
