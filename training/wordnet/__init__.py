"""The WordNet question set: definitions of nouns, each asked about with four nouns of one subject."""
