"""How fast the hot paths are, beside the papers' way of doing the same and beside what the machine could do at best."""
