"""The policy server, the protocols that robots and benchmarks speak to it, and the client for the other end."""
