"""How good a learner is: few-shot accuracy, the floors below it, a judge of pseudo-images."""
