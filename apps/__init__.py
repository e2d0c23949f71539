"""Applied tasks on the shared trunk; ``python -m apps`` lists them."""
