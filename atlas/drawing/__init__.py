"""Everything that is drawn: figures, films and curves."""
