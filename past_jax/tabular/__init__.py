"""Sharpening (arXiv 2412.01951) where everything is exact: laws of distributions that one can write down, and classes
of policies small enough to be fitted to the end with the losses that train models. docs/theory.md shows what comes out.

Letters, beside those of `types`: `Y` responses to a prompt, `F` features.
"""
