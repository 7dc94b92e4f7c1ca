"""One rank of the actor: verl's engine with pictures, patches of model classes, losses, and the check against the server."""
