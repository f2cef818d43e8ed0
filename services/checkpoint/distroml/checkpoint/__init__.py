"""The catalogue of checkpoints: what is a checkpoint, which ones are kept, which are damaged."""
