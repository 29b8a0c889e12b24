"""Tools that know nothing of this project: files, seeds, logs, numbers, pictures, the command line."""
