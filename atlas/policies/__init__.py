"""Policies: the contract (`base.py`), its types, and what is saved with them. Importing it imports no torch."""
