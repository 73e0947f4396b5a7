"""Panels of figures: one module per kind of picture."""
