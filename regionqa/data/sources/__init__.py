"""Public datasets as training records: a module per dataset, `kinds` lists them."""
