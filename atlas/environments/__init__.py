"""The worlds in which policies act: environments, simulators, and the experts that solve their tasks."""
