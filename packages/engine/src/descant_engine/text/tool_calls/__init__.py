"""Tool calls in a model's text, each family's own way: text in as it arrives, content and calls out."""
