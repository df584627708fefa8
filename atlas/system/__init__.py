"""Files, processes, cores and the other things of the machine that every room uses."""
