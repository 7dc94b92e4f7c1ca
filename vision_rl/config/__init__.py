"""The configuration: which keys are known, which are refused, which values are derived, and what is checked."""
