"""Keys and values of prefixes, kept once and shared by what branches off them."""
