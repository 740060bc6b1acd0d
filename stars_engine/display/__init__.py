"""How objects look in a notebook and on a page: HTML from their attributes alone."""
