"""Asking one of several models at a price: a small example of routing."""
