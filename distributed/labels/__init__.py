"""Brings the teacher's labels from labelers to students: they are made in blocks, and kept as files or streamed."""
