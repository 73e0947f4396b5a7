"""Checkpoints into models: formats, names, and reading only what a process keeps."""
