"""One policy on several processes."""
