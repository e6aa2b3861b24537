"""Paper 1, *The representation landscape of few-shot learning and fine-tuning in large language models*."""
