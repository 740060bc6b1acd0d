"""How the embedded pair was made. No installed package imports this."""
