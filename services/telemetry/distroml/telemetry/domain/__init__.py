"""Pure policies: how histories are thinned, how public events fold to a job's view, what follows from both."""
