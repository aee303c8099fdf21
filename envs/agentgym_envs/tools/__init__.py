"""Stateful tool worlds: records, typed tools over them, a policy to keep, and a user to talk to."""
