"""Teachers of which nothing can be had but their answers."""
