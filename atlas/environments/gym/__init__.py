"""Environments of gymnasium, by `gym:ID` and under names of their own."""
