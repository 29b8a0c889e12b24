"""What surrounds a paper: the contract, and finding, wiring, validating, evaluating and keeping."""
