"""Fine-tune the language models with LoRA, as the first paper does."""
