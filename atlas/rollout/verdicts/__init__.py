"""Conclusions from episodes, and what it takes to believe them: how they failed, under which perturbations, against
whom."""
