"""What episodes prove, and what it takes to believe it: how they failed, under which perturbations, against whom."""
