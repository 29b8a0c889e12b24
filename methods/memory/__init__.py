"""Where pseudo-images are kept, and what is learnt from them again."""
