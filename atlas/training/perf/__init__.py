"""What a step costs, and what makes it cheaper."""
