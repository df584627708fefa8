"""Worlds in other Python environments, by their address."""
