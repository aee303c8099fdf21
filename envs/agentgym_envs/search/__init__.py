"""Questions over a local corpus: search, open, answer with citations."""
