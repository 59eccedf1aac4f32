"""Artifacts that training leaves behind: the teacher with the revisions of its vectors, and the trained student."""
