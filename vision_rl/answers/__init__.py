"""What a model's reply says: answers, boxes, points, and the space they are in."""
