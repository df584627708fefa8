"""Actors and a learner in separate processes, on one machine or on several."""
