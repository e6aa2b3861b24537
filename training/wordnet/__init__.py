"""The WordNet question set: definitions of nouns, each asked with four nouns of one subject."""
