"""Places to run untrusted code."""
