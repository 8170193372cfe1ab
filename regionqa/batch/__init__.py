"""Many requests on local disk or object storage, answered by Ray Data."""
