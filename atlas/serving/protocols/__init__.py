"""The messages that clients send and expect, one module per protocol, and the keys in those messages."""
