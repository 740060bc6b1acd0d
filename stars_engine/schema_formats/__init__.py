"""JSON schemas as dictionaries, in the formats of vendors and in pieces."""
