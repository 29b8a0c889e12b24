"""What is done from a command line: parsing, training, results, the page of all runs, prediction, services."""
