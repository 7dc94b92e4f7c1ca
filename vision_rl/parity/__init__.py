"""Whether trainer and model server compute the same: the same questions about pictures to both, log-probabilities compared."""
