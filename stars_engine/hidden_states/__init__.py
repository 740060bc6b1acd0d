"""Hidden states of the language model: which ones a reward reads, and what a head makes of them."""
