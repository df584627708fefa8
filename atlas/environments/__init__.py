"""Where policies act: environments, simulators, and the experts that solve them."""
