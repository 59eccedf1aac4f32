"""Teacher labels between labelers and students: made once in blocks, kept as files or streamed."""
