"""Environments over HTTP and WebSocket, and the client that makes them look local again."""
