"""What a model's reply says: answers, boxes and points, and the coordinate space they are in."""
