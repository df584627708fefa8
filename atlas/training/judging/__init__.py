"""How a training is judged: in closed loop, by which metric, and at its end."""
