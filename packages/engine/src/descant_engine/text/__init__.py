"""Text on its way in and out: chat template, tokenizer, detokenizer. The engine itself knows token ids only."""
