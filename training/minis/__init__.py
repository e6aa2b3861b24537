"""The minis: small vision-language models that the book trains itself, of two real architectures."""
