"""Writes and reads the artifacts of training: the teacher with the revisions of its vectors, and the trained student."""
