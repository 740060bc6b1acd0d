"""Read JSON schemas from dictionaries in the formats of several vendors."""
