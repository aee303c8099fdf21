"""`agentgym sandbox serve`: the sandboxes of one machine, lent over HTTP to clients that have its token."""
