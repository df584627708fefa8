"""Processes: their cores, their threads, their start, and the terminal they belong to."""
