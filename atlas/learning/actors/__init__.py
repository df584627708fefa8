"""Actors and their learner apart: in processes of one machine, or on several."""
