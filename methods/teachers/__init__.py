"""Teachers: the classifiers somebody trained. Reading a pool of them, and training one."""
