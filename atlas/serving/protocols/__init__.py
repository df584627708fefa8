"""The messages that clients send and expect, a module a protocol, and what they call what they see."""
