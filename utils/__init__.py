"""Tools that know nothing of this project: files, seeds, numbers, pictures, the command line."""
