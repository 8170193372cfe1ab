"""From records to batches: samples, their order, features of their images, changes of these."""
