"""Worlds in other Python environments or on other machines, by their address."""
