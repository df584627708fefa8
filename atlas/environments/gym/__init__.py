"""Environments of gymnasium, as `gym:ID` and as named presets."""
