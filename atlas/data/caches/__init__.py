"""Caches, on disk or in memory, of data that has been read or computed once."""
