"""Judges of submissions."""
