"""A rank of the actor: the engine with pictures, patches of model classes, losses, and the comparison with the server."""
