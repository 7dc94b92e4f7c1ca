"""Model servers, vLLM and SGLang: those that verl starts for a run, and those that other commands start alone."""
