"""The Model Context Protocol: any server's tools in an environment, and any environment's tools on a server."""
