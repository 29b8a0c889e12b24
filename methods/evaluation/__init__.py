"""The yardsticks: few-shot accuracy, the floors below it, and what an independent network sees in the pseudo-images."""
