"""Backend of vision-language models of the Hub, through transformers."""
