"""Sweeps: arms and seeds of `past study`, contrasts between them, and the table of claims they are evidence for."""
