"""Atlas's own policy: vision, language, fusion and head."""
