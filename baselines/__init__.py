"""What a trained model must beat: hosted models over their API, and answers that look at no picture."""
