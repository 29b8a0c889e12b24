"""Image sets: a table of them, lists of files to tensors, episodes, and the subsets that teachers see."""
