"""What the frameworks are told of machines, model families and weights: CPU platform, engine, model servers, sockets."""
