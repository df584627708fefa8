"""Policies: the contract (`base.py`), its types, and how they are saved. Importing it imports no torch."""
