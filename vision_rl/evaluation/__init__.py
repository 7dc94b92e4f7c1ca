"""Score a model on a data file with the agents of training; keep every answer and sum up the results.

results.py keeps one line per row, so that a killed run continues where it stopped; scorer.py asks; traffic.py counts tokens
and waits for rate limits; metrics.py and summary.py turn lines into figures with intervals; report.py shows them with the
pictures; comparison.py sets several evaluations side by side.
"""
