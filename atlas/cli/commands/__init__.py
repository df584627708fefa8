"""The verbs of `atlas`, a module a group of them; `atlas/cli/__init__.py` puts them together."""
